/* STREAM's Copy, as its rules say: c[i] = a[i] of doubles, all cores, arrays given in bytes.
 * stream_copy BYTES TIMES: prints the bytes read and written per second, each repetition on a line. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

int main(int count, char **given)
{
    if (count != 3) {
        fprintf(stderr, "stream_copy BYTES TIMES\n");
        return 2;
    }
    long items = atol(given[1]) / (long)sizeof(double), times = atol(given[2]);
    double *a = aligned_alloc(4096, items * sizeof(double));
    double *c = aligned_alloc(4096, items * sizeof(double));
    if (items < 512 || !a || !c) {
        fprintf(stderr, "no memory for two arrays of %s bytes\n", given[1]);
        return 1;
    }
    /* Each thread touches its part first, which puts it into the memory next to its core. */
#pragma omp parallel for schedule(static)
    for (long i = 0; i < items; i++) {
        a[i] = 1.0 + i % 7;
        c[i] = 0.0;
    }
    for (long turn = 0; turn < times; turn++) {
        double begun = omp_get_wtime();
#pragma omp parallel for schedule(static)
        for (long i = 0; i < items; i++)
            c[i] = a[i];
        double taken = omp_get_wtime() - begun;
        printf("%.6e\n", 2.0 * items * sizeof(double) / taken);
    }
    for (long i = 0; i < items; i++)
        if (c[i] != a[i])
            return 3;
    return 0;
}
