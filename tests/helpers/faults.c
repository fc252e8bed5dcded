/* Loaded by LD_PRELOAD: counts the calls of one process tree that touch files below a folder, and fails one of them.

FAULTS_STATE: a file of 8 zero bytes, the counter that all processes share. FAULTS_UNDER: the folder. FAULTS_CALLS: which
calls count, a text that contains their letters: r(ead) w(rite) s(ync) n (rename) t (allocate, truncate). FAULTS_AT: the
number of the call that fails, from 1; 0 only counts. FAULTS_ERRNO: the error it fails with; 0 kills the process. */

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
#include <unistd.h>

static _Atomic uint64_t *counter;
static const char *under, *calls;
static uint64_t at;
static int code;

__attribute__((constructor)) static void begin(void) {
    const char *state = getenv("FAULTS_STATE");
    under = getenv("FAULTS_UNDER");
    calls = getenv("FAULTS_CALLS");
    if (!state || !under || !calls) return;
    at = strtoull(getenv("FAULTS_AT"), NULL, 10);
    code = atoi(getenv("FAULTS_ERRNO"));
    int file = open(state, O_RDWR | O_CLOEXEC);
    if (file < 0) return;
    void *page = mmap(NULL, 8, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (page != MAP_FAILED) counter = page;
}

static int below(const char *path) {
    return strncmp(path, under, strlen(under)) == 0;
}

static int strikes(char kind, const char *path) {
    if (!counter || !strchr(calls, kind) || !below(path)) return 0;
    if (atomic_fetch_add(counter, 1) + 1 != at) return 0;
    if (code == 0) kill(getpid(), SIGKILL);
    errno = code;
    return 1;
}

static int strikes_file(char kind, int file) {
    char name[64], path[4096];
    if (!counter) return 0;
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
FILE_CALL('w', ssize_t, write, (int file, const void *data, size_t size), (file, data, size))
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
        return strikes_file('t', file) ? code : next(file, offset, size);        \
    }
ALLOCATE(posix_fallocate, off_t)
ALLOCATE(posix_fallocate64, off64_t)

int rename(const char *from, const char *to) {
    static int (*next)(const char *, const char *);
    if (!next) next = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    return strikes('n', to) ? -1 : next(from, to);
}
