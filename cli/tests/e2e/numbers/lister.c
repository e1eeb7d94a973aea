// Prints the names below a directory whose listing tells another inode number than lstat() does, and how many there are.
#define _GNU_SOURCE
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static long names;

static void walk(const char *path) {
    // All of the listing before anything is looked up, which would tell the server of it.
    struct dirent **entries;
    int count = scandir(path, &entries, NULL, alphasort);
    if (count < 0) {
        perror(path);
        exit(1);
    }
    for (int at = 0; at < count; at++) {
        struct dirent *entry = entries[at];
        char child[4096];
        struct stat stat;
        snprintf(child, sizeof child, "%s/%s", path, entry->d_name);
        if (lstat(child, &stat) != 0) {
            perror(child);
            exit(1);
        }
        if (stat.st_ino != entry->d_ino)
            printf("%s: listed as %lx, is %lx\n", child, (long)entry->d_ino, (long)stat.st_ino);
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        names++;
        if (S_ISDIR(stat.st_mode))
            walk(child);
    }
}

int main(int count, char **arguments) {
    walk(count > 1 ? arguments[1] : ".");
    printf("%ld names\n", names);
    return 0;
}
