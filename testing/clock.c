/* Preloaded into processes: the wall clock as they read it differs from the machine's.
 *
 * The difference, nanoseconds in a file of 8 bytes, may be changed from outside at any moment. The monotonic
 * clock is left alone, as it is when somebody sets a machine's clock. Known limitation: a wait until a moment
 * of the wall clock, as pthread_cond_timedwait does by default, is not shifted.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t none = 0;
static volatile int64_t *difference = &none;

/* Reads the difference from this file from now on. Returns 0, or -1 if the file cannot be mapped. */
int testing_clock_follow(const char *path)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return -1;
    void *mapped = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED)
        return -1;
    difference = mapped;
    return 0;
}

__attribute__((constructor)) static void follow_from_the_start(void)
{
    const char *path = getenv("TESTING_CLOCK_FILE");
    if (path)
        testing_clock_follow(path);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    /* Not dlsym: the first calls may come before libraries can be searched. */
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (failed || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE))
        return failed;
    int64_t nanoseconds = now->tv_sec * INT64_C(1000000000) + now->tv_nsec + *difference;
    now->tv_sec = nanoseconds / INT64_C(1000000000);
    now->tv_nsec = nanoseconds % INT64_C(1000000000);
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec precise;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &precise))
        return -1;
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *seconds)
{
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (seconds)
        *seconds = precise.tv_sec;
    return precise.tv_sec;
}
