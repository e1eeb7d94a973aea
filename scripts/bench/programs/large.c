/* A program of PADDING bytes: most of it is never touched, as in a large executable. */
static const char padding[PADDING] = {1};

int main(void) {
    volatile const char *used = padding;
    /* What is there is the row's business. */
    return used[PADDING / 2] == used[PADDING / 2] ? 0 : 1;
}
