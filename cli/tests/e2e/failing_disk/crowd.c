// Holds ten thousand files open at once, and has a hundred threads write to files of their own and read them back.
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILES = 10000, WRITERS = 100, ROUNDS = 50 };

static void must(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static void *writer(void *argument) {
    long number = (long)argument;
    char name[64], block[4096], found[4096];
    snprintf(name, sizeof name, "crowd/w%ld", number);
    int file = open(name, O_RDWR | O_CREAT | O_EXCL, 0644);
    must(file >= 0, name);
    for (int round = 0; round < ROUNDS; round++) {
        memset(block, (int)(number * 31 + round), sizeof block);
        must(pwrite(file, block, sizeof block, (off_t)round * sizeof block) == sizeof block, "pwrite");
    }
    for (int round = 0; round < ROUNDS; round++) {
        memset(block, (int)(number * 31 + round), sizeof block);
        must(pread(file, found, sizeof found, (off_t)round * sizeof block) == sizeof found, "pread");
        must(!memcmp(block, found, sizeof block), "what was written");
    }
    must(!close(file) && !unlink(name), "close");
    return NULL;
}

int main(void) {
    struct rlimit limit;
    must(!getrlimit(RLIMIT_NOFILE, &limit), "getrlimit");
    limit.rlim_cur = limit.rlim_max;
    must(!setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");
    // A machine that grants less has less to prove.
    int files = limit.rlim_max < FILES + 1000 ? (int)limit.rlim_max / 2 : FILES;
    must(!mkdir("crowd", 0755), "mkdir");
    int *open_files = calloc(files, sizeof *open_files);
    char name[64];
    for (int i = 0; i < files; i++) {
        snprintf(name, sizeof name, "crowd/f%d", i);
        open_files[i] = open(name, O_RDWR | O_CREAT | O_EXCL, 0644);
        must(open_files[i] >= 0 && write(open_files[i], &i, sizeof i) == sizeof i, name);
    }
    pthread_t threads[WRITERS];
    for (long i = 0; i < WRITERS; i++) {
        must(!pthread_create(&threads[i], NULL, writer, (void *)i), "pthread_create");
    }
    for (int i = 0; i < WRITERS; i++) {
        must(!pthread_join(threads[i], NULL), "pthread_join");
    }
    for (int i = 0; i < files; i++) {
        int found;
        must(pread(open_files[i], &found, sizeof found, 0) == sizeof found && found == i, "what was written");
        snprintf(name, sizeof name, "crowd/f%d", i);
        must(!close(open_files[i]) && !unlink(name), name);
    }
    must(!rmdir("crowd"), "rmdir");
    return 0;
}
