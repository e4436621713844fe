/* STREAM's Copy, as its rules say: c[i] = a[i] of doubles in static arrays of ITEMS, by all cores.
 * The arrays are static, as STREAM's are, so that the compiler knows them apart: gcc then copies with
 * memcpy, which stores past the cache. Huge pages are asked for, as numpy does for our arrays: in small
 * ones the rate of some machines changes by a third from one start to the next.
 * stream_copy TIMES prints bytes read and written per second, one line for each repetition. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#define HUGE_PAGE 2097152

static _Alignas(HUGE_PAGE) double a[ITEMS];
static _Alignas(HUGE_PAGE) double c[ITEMS];

int main(int count, char **given)
{
    if (count != 2) {
        fprintf(stderr, "stream_copy TIMES\n");
        return 2;
    }
    long times = atol(given[1]);
    /* A kernel without huge pages refuses, and gives small ones to both sides. */
    madvise(a, sizeof a, MADV_HUGEPAGE);
    madvise(c, sizeof c, MADV_HUGEPAGE);
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
