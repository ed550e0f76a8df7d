/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In the place of libFuzzer: feeds a fuzz target with files, once each.
 *
 *	feed FILE...
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_len);
__attribute__((weak)) int LLVMFuzzerInitialize(int *argc, char ***argv);

static int feed(const char *path)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st)) {
		return -1;
	}
	uint8_t *data = malloc((size_t)st.st_size + 1);
	ssize_t len = data ? read(fd, data, (size_t)st.st_size) : -1;
	if (len >= 0) {
		(void)LLVMFuzzerTestOneInput(data, (size_t)len);
	}
	free(data);
	close(fd);
	return len < 0 ? -1 : 0;
}

int main(int argc, char **argv)
{
	if (LLVMFuzzerInitialize) {
		LLVMFuzzerInitialize(&argc, &argv);
	}
	for (int i = 1; i < argc; i++) {
		if (feed(argv[i])) {
			perror(argv[i]);
			return 1;
		}
	}
	printf("%d inputs\n", argc - 1);
	return 0;
}
