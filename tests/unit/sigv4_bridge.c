/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signs requests read from standard input, for tests/sigv4: one per line, fields
 * separated by TABs, every value in hex (so an empty field is an empty value):
 *
 *	method path query headers payload-sha256 access-key secret token region time
 *
 * path is raw; query and headers are name=value pairs joined by `&`. Headers come
 * without x-amz-date and x-amz-security-token. Prints the encoded path and query
 * and the value of the Authorization header, separated by TABs.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/store/sigv4.h"

#define FIELDS 10
#define PAIRS_MAX 64

struct pair {
	char *name, *value;
};

static char *unhex(const char *hex, size_t len)
{
	char *bytes = calloc(1, len / 2 + 1);
	for (size_t i = 0; i + 1 < len; i += 2) {
		char digits[3] = { hex[i], hex[i + 1], '\0' };
		bytes[i / 2] = (char)strtoul(digits, NULL, 16);
	}
	return bytes;
}

static size_t read_pairs(const char *field, struct pair *pairs)
{
	size_t count = 0;
	while (*field != '\0' && count < PAIRS_MAX - 2) {
		size_t name_len = strcspn(field, "=");
		size_t value_len = strcspn(field + name_len + 1, "&");
		pairs[count].name = unhex(field, name_len);
		pairs[count++].value = unhex(field + name_len + 1, value_len);
		field += name_len + 1 + value_len;
		field += *field == '&';
	}
	return count;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct pair *)a)->name, ((const struct pair *)b)->name);
}

static void sign(char **fields)
{
	static struct us_sigv4_identity identity;
	struct us_error err = US_ERROR_INIT;
	struct pair headers[PAIRS_MAX], query[PAIRS_MAX];
	struct us_sigv4_header sorted[PAIRS_MAX];
	struct us_sigv4_query_pair query_pairs[PAIRS_MAX];
	char *text[FIELDS];
	for (size_t i = 0; i < FIELDS; i++) {
		text[i] = unhex(fields[i], strlen(fields[i]));
	}
	size_t query_count = read_pairs(fields[2], query);
	size_t count = read_pairs(fields[3], headers);
	headers[count++] = (struct pair){ strdup("x-amz-date"), strdup(text[9]) };
	if (text[7][0] != '\0') {
		headers[count++] = (struct pair){ strdup("x-amz-security-token"), strdup(text[7]) };
	}
	qsort(headers, count, sizeof(headers[0]), by_name);
	for (size_t i = 0; i < count; i++) {
		sorted[i] = (struct us_sigv4_header){ headers[i].name, headers[i].value,
						      strlen(headers[i].name),
						      strlen(headers[i].value) };
	}
	for (size_t i = 0; i < query_count; i++) {
		query_pairs[i] = (struct us_sigv4_query_pair){ query[i].name, query[i].value,
							       strlen(query[i].name),
							       strlen(query[i].value) };
	}
	struct us_text path, encoded_query, value;
	us_text_init(&path, 65536);
	us_text_init(&encoded_query, 65536);
	us_text_init(&value, 65536);
	us_text_add_encoded(&path, text[1], strlen(text[1]), 1);
	us_text_puts(&encoded_query, "");
	us_sigv4_add_query(&encoded_query, query_pairs, query_count);
	struct us_sigv4_request request = { text[0], path.data, encoded_query.data,
					    sorted,  count,     text[4],
					    text[9], text[8] };
	if (us_sigv4_identity_set(&identity, text[5], text[6], text[7], &err) ||
	    us_sigv4_authorization(&identity, &request, &value, &err)) {
		printf("failed\t\t%s\n", err.message);
	} else {
		printf("%s\t%s\t%s\n", path.data, encoded_query.data, value.data);
	}
	us_text_done(&path);
	us_text_done(&encoded_query);
	us_text_done(&value);
	for (size_t i = 0; i < FIELDS; i++) {
		free(text[i]);
	}
	for (size_t i = 0; i < count; i++) {
		free(headers[i].name);
		free(headers[i].value);
	}
	for (size_t i = 0; i < query_count; i++) {
		free(query[i].name);
		free(query[i].value);
	}
}

int main(void)
{
	static char line[1 << 18];
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = '\0';
		char *fields[FIELDS], *rest = line;
		size_t count = 0;
		while (count < FIELDS && rest) {
			fields[count++] = strsep(&rest, "\t");
		}
		if (count != FIELDS) {
			printf("failed\t\t%zu fields\n", count);
		} else {
			sign(fields);
		}
		fflush(stdout);
	}
	return 0;
}
