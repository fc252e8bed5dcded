/* Loaded by LD_PRELOAD: counts the calls of one process tree that touch files below a folder, and fails one of them.

FAULTS_STATE names a file of the size of `struct state`, which all processes share and the test writes. `calls`: the
letters of the calls that count: r(ead) w(rite, fwrite) s(ync) n (rename) t (allocate, truncate) f(read). `at`: the number
of the call that fails, from 1; 0 only counts. `code`: the error it fails with; 0 kills the process; -1 makes it wait for
SIGCONT, and `stopped` is its id then. -2: each counted call fails in a fork of its own, whatever `at`; the process itself
waits for the fork and goes on without a fault. Such a fork is for a process that answers on a pipe: what it writes goes to
the file FAULTS_FORKS, and its first answer that starts with {"result" or {"error" is its end; after a minute it is killed.
The file has for each fork: 1E, number of the call, space, id of the process, line feed; what the fork wrote; 1D, its wait
status, line feed.
A call of fread or fwrite counts once. FAULTS_CLOCK: every look at the clock of the
day gives a time that is so many seconds before the last one. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct state {
    _Atomic uint64_t counter;
    uint64_t at;
    int64_t code, stopped;
    char calls[8], under[480];
};
static struct state *state;
static int64_t back;
static int forked;

static void redirect(const char *log) {
    char name[64], path[64];
    int capture = open(log, O_WRONLY | O_APPEND), nothing = open("/dev/null", O_RDONLY);
    for (int file = 0; file < 256; file++) {
        snprintf(name, sizeof name, "/proc/self/fd/%d", file);
        ssize_t length = readlink(name, path, sizeof path - 1);
        if (length < 0) continue;
        path[length] = 0;
        int pipe = !strncmp(path, "pipe:", 5), reads = (fcntl(file, F_GETFL) & O_ACCMODE) == O_RDONLY;
        if (file == 1 || file == 2 || (pipe && !reads)) dup2(capture, file);
        else if (pipe) dup2(nothing, file);
    }
}

/* 1 in the fork; 0 in the process, after the end of the fork. */
static int fails_in_a_fork(uint64_t number) {
    const char *log = getenv("FAULTS_FORKS");
    int status = 0;
    char line[64];
    int file = open(log, O_WRONLY | O_APPEND);
    if (file < 0) abort();
    dprintf(file, "\x1e%llu %d\n", (unsigned long long)number, (int)getpid());
    pid_t fork_id = fork();
    if (fork_id == 0) {
        forked = 1;
        alarm(60);
        redirect(log);
        errno = EIO;
        return 1;
    }
    while (waitpid(fork_id, &status, 0) < 0 && errno == EINTR) {}
    snprintf(line, sizeof line, "\x1d%d\n", status);
    if (write(file, line, strlen(line)) < 0) abort();
    close(file);
    return 0;
}

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("FAULTS_STATE"), *step = getenv("FAULTS_CLOCK");
    back = step ? atoll(step) : 0;
    int file = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *page = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (page != MAP_FAILED) state = page;
}

static int strikes(char kind, const char *path) {
    if (!state || !strchr(state->calls, kind) || strncmp(path, state->under, strlen(state->under))) return 0;
    if (forked) return 0;
    uint64_t number = atomic_fetch_add(&state->counter, 1) + 1;
    if (state->code == -2) return fails_in_a_fork(number);
    if (number != state->at) return 0;
    if (state->code == 0) kill(getpid(), SIGKILL);
    if (state->code == -1) {
        state->stopped = getpid();
        kill(getpid(), SIGSTOP);
        return 0;
    }
    errno = (int)state->code;
    return 1;
}

static int strikes_file(char kind, int file) {
    char name[64], path[4096];
    if (!state || !state->calls[0]) return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strikes(kind, path);
}

#define FILE_CALL(kind, type, name, parameters, arguments)      \
    type name parameters {                                      \
        static type (*next) parameters;                         \
        if (!next) next = (type(*) parameters)dlsym(RTLD_NEXT, #name); \
        return strikes_file(kind, file) ? -1 : next arguments;  \
    }

FILE_CALL('r', ssize_t, read, (int file, void *data, size_t size), (file, data, size))
FILE_CALL('r', ssize_t, pread, (int file, void *data, size_t size, off_t offset), (file, data, size, offset))
FILE_CALL('r', ssize_t, pread64, (int file, void *data, size_t size, off64_t offset), (file, data, size, offset))

ssize_t write(int file, const void *data, size_t size) {
    static ssize_t (*next)(int, const void *, size_t);
    if (!next) next = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    if (strikes_file('w', file)) return -1;
    ssize_t written = next(file, data, size);
    if (forked && size > 8 && (!memcmp(data, "{\"result\"", 9) || !memcmp(data, "{\"error\"", 8))) _exit(0);
    return written;
}

FILE_CALL('w', ssize_t, pwrite, (int file, const void *data, size_t size, off_t offset), (file, data, size, offset))
FILE_CALL('w', ssize_t, pwrite64, (int file, const void *data, size_t size, off64_t offset), (file, data, size, offset))
FILE_CALL('s', int, fsync, (int file), (file))
FILE_CALL('s', int, fdatasync, (int file), (file))
FILE_CALL('t', int, ftruncate, (int file, off_t size), (file, size))
FILE_CALL('t', int, ftruncate64, (int file, off64_t size), (file, size))

#define ALLOCATE(name, offset_type)                                              \
    int name(int file, offset_type offset, offset_type size) {                   \
        static int (*next)(int, offset_type, offset_type);                       \
        if (!next) next = (int (*)(int, offset_type, offset_type))dlsym(RTLD_NEXT, #name); \
        return strikes_file('t', file) ? (int)state->code : next(file, offset, size);        \
    }
ALLOCATE(posix_fallocate, off_t)
ALLOCATE(posix_fallocate64, off64_t)

int rename(const char *from, const char *to) {
    static int (*next)(const char *, const char *);
    if (!next) next = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    return strikes('n', to) ? -1 : next(from, to);
}

#define STREAM_CALL(kind, type, name)                                            \
    size_t name(type data, size_t size, size_t count, FILE *stream) {            \
        static size_t (*next)(type, size_t, size_t, FILE *);                     \
        if (!next) next = (size_t (*)(type, size_t, size_t, FILE *))dlsym(RTLD_NEXT, #name); \
        return strikes_file(kind, fileno(stream)) ? 0 : next(data, size, count, stream); \
    }
STREAM_CALL('f', void *, fread)
STREAM_CALL('w', const void *, fwrite)

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*next)(clockid_t, struct timespec *);
    static _Atomic int64_t looks;
    if (!next) next = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = next(clock, now);
    if (back && clock == CLOCK_REALTIME) now->tv_sec -= back * atomic_fetch_add(&looks, 1);
    return result;
}
