"""What is known of LLMs and hardware, each figure with its source and grade, and code to read it.

Grades: **a** read from the vendor's own configuration, code or document, or from the measurement's
own report; **b** from a copy or a secondary source; **c** derived from graded figures, or assumed,
as the entry's ``note`` says; **given**: supplied by the user.
"""
