"""The what-if dashboard: Streamlit pages over the models; ``dualpath dashboard`` serves it."""
