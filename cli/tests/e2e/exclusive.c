/* Maps a file, closes it, and writes to the mapping when the file "now" appears; says so in "done", and unmaps. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static int must(int result, const char *what) {
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    int fd = must(open(argv[1], O_RDWR), argv[1]);
    char *at = mmap(NULL, 1, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    must(at == MAP_FAILED ? -1 : 0, "mmap");
    close(fd);
    close(must(creat(argv[3], 0644), argv[3]));
    for (int tries = 0; access(argv[2], F_OK) != 0 && tries < 6000; tries++) usleep(10000);
    at[0] = 'M';
    must(munmap(at, 1), "munmap");
    return 0;
}
