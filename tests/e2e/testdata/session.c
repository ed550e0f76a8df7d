/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process whose memory a test looks into: the ABI alone, told by lines on standard
 * input what to do next. Each is answered by one line: "ok ..." or "error ...".
 *
 *	session ENDPOINT BUCKET DIR	replicates DIR/data/NAME.db, state in DIR/state
 *
 *	keys ID SECRET TOKEN	us_set_credentials
 *	cycle			us_cycle, with a sweep
 *	restore NAME		us_restore to DIR/NAME.restored
 *	verify			a task over all
 *	close			us_close
 *
 * Keeps no line: what was read is wiped.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <ultrasimple.h>

static const char *dir;
static struct us *us;
static struct us_error err = { .struct_size = sizeof(struct us_error) };

static int32_t set_keys(char *arguments)
{
	struct us_credentials credentials = { .struct_size = sizeof(credentials) };
	credentials.access_key_id = strtok(arguments, " ");
	credentials.secret_access_key = strtok(NULL, " ");
	credentials.session_token = strtok(NULL, " ");
	return us_set_credentials(us, &credentials, &err);
}

static int32_t cycle(char *ret_text, size_t cap)
{
	struct us_cycle_result result = { .struct_size = sizeof(result) };
	us_sweep(us);
	int32_t rc = us_cycle(us, &result, &err);
	(void)snprintf(ret_text, cap, "uploaded %llu failed %llu",
		       (unsigned long long)result.uploaded, (unsigned long long)result.failed);
	return rc;
}

static int32_t restore(const char *name, char *ret_text, size_t cap)
{
	char path[4096], output[4096];
	(void)snprintf(path, sizeof(path), "%s/data/%s.db", dir, name);
	(void)snprintf(output, sizeof(output), "%s/%s.restored", dir, name);
	struct us_restore_options options = { .struct_size = sizeof(options),
					      .path = path,
					      .output_path = output };
	struct us_restore_result result = { .struct_size = sizeof(result) };
	int32_t rc = us_restore(us, &options, &result, &err);
	(void)snprintf(ret_text, cap, "restored");
	return rc;
}

static int32_t verify(char *ret_text, size_t cap)
{
	static struct us_row row;
	struct us_task_options options = { .struct_size = sizeof(options), .kind = US_TASK_VERIFY };
	struct us_progress progress = { .struct_size = sizeof(progress) };
	struct us_task *task = NULL;
	int32_t rc = us_task_start(us, &options, &task, &err);
	while (rc >= 0 && !progress.finished) {
		rc = us_task_next(task, 1000, &row, 1, &progress, &err);
	}
	us_task_close(task);
	(void)snprintf(ret_text, cap, "verified %llu failed %llu",
		       (unsigned long long)progress.done_count,
		       (unsigned long long)progress.failed_count);
	return rc;
}

static int32_t obey(char *line, char *ret_text, size_t cap)
{
	if (strncmp(line, "keys ", 5) == 0) {
		return set_keys(line + 5);
	}
	if (strcmp(line, "cycle") == 0) {
		return cycle(ret_text, cap);
	}
	if (strncmp(line, "restore ", 8) == 0) {
		return restore(line + 8, ret_text, cap);
	}
	if (strcmp(line, "verify") == 0) {
		return verify(ret_text, cap);
	}
	us_close(us);
	us = NULL;
	return 0;
}

/* One byte at a time, so that no buffer has it but LINE. */
static int read_line(char *line, size_t cap)
{
	size_t len = 0;
	while (len < cap - 1 && read(STDIN_FILENO, line + len, 1) == 1) {
		if (line[len] == '\n') {
			line[len] = '\0';
			return 1;
		}
		len++;
	}
	return 0;
}

int main(int argc, char **argv)
{
	char line[8192], text[256], pattern[4096], state[4096];
	if (argc != 4) {
		return 2;
	}
	dir = argv[3];
	(void)snprintf(pattern, sizeof(pattern), "%s/data/{name}.db", dir);
	(void)snprintf(state, sizeof(state), "%s/state", dir);
	struct us_options options = { .struct_size = sizeof(options),
				      .flags = US_OPEN_S3_PATH_STYLE | US_OPEN_S3_SKIP_VERIFY,
				      .discovery_pattern = pattern,
				      .path = "{{name}}",
				      .state_dir = state,
				      .target = US_TARGET_S3,
				      .s3_endpoint = argv[1],
				      .s3_bucket = argv[2] };
	int32_t rc = us_open(&options, &us, &err);
	while (rc >= 0 && read_line(line, sizeof(line))) {
		text[0] = '\0';
		rc = obey(line, text, sizeof(text));
		explicit_bzero(line, sizeof(line));
		if (rc >= 0) {
			printf("ok %s\n", text);
		}
		fflush(stdout);
	}
	if (rc < 0) {
		printf("error %s\n", err.message);
	}
	return rc < 0;
}
