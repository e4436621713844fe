/* STREAM's Copy, as its rules say: c[i] = a[i] of doubles in static arrays of ITEMS, by all cores.
 * The arrays are static, as STREAM's are, so that the compiler knows them apart: gcc then copies with
 * memcpy, which stores past the cache. stream_copy TIMES prints bytes read and written per second,
 * one line for each repetition. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

static double a[ITEMS], c[ITEMS];

int main(int count, char **given)
{
    if (count != 2) {
        fprintf(stderr, "stream_copy TIMES\n");
        return 2;
    }
    long times = atol(given[1]);
    /* Each thread touches its part first, which puts it into the memory next to its core. */
#pragma omp parallel for schedule(static)
    for (long i = 0; i < ITEMS; i++) {
        a[i] = 1.0 + i % 7;
        c[i] = 0.0;
    }
    for (long turn = 0; turn < times; turn++) {
        double begun = omp_get_wtime();
#pragma omp parallel for schedule(static)
        for (long i = 0; i < ITEMS; i++)
            c[i] = a[i];
        double taken = omp_get_wtime() - begun;
        printf("%.6e\n", 2.0 * ITEMS * sizeof(double) / taken);
    }
    for (long i = 0; i < ITEMS; i++)
        if (c[i] != a[i])
            return 3;
    return 0;
}
