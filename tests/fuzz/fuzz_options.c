/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The options of the ABI: how long the caller's struct is, what lies behind the fields that
 * are known, its numbers, which texts there are, and the texts, separated by NULs. Only
 * what can work is accepted, whatever version of the header the caller had.
 */
#include "fuzz.h"

#define TEXTS 11
#define SIZE_MAX_OF_STRUCT (sizeof(struct us_options) + 32)

/* The keys that a message about a configuration may begin with. */
static int names_key(const char *message)
{
	static const char *const keys[] = {
		"discovery_pattern: ",
		"path: ",
		"state_dir: ",
		"memory_limit: ",
		"max_concurrent_uploads: ",
		"directory: ",
		"endpoint: ",
		"region: ",
		"bucket: ",
		"storage_class: ",
		"sse: ",
		"sse_kms_key_id: ",
	};
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		if (strncmp(message, keys[i], strlen(keys[i])) == 0) {
			return 1;
		}
	}
	return 0;
}

static void check_accepted(const struct us_options *o)
{
	char prefix[8192];
	struct us_error err = US_ERROR_INIT;
	require(o->flags < 16 && o->reserved == 0 && o->max_concurrent_uploads <= 1000);
	require(o->memory_limit_bytes == 0 || o->memory_limit_bytes >= 16000000);
	require(o->target == US_TARGET_S3 ? o->s3_bucket && o->s3_bucket[0]
					  : o->target == US_TARGET_FILE && o->directory[0] == '/');
	int32_t len = us_prefix(o, prefix, sizeof(prefix), &err);
	require(len > 0 && prefix[0] == '/' && strlen(prefix) == (size_t)len);
	require(us_match(o, prefix, &err) == 0); /* a directory above what matches */
}

static void check_options(const struct us_options *o, const uint8_t *tail)
{
	struct us_error err = US_ERROR_INIT;
	int is_known = 1;
	size_t size = o->struct_size < SIZE_MAX_OF_STRUCT ? o->struct_size : SIZE_MAX_OF_STRUCT;
	uint8_t *given = calloc(1, size > 4 ? size : 4);
	require(given);
	memcpy(given, o, size < sizeof(*o) ? size : sizeof(*o));
	memcpy(given, &o->struct_size, sizeof(o->struct_size));
	for (size_t i = sizeof(*o); i < size; i++) {
		given[i] = tail[i - sizeof(*o)];
		is_known &= given[i] == 0;
	}
	int32_t rc = us_check((const struct us_options *)(const void *)given, &err);
	if (rc) {
		require_reason(rc, &err);
		require(rc == US_E_ARG || (rc == US_E_CONFIG && names_key(err.message)));
	} else {
		struct us_options seen = { 0 };
		memcpy(&seen, given, size < sizeof(seen) ? size : sizeof(seen));
		seen.struct_size = sizeof(seen);
		require(is_known && size >= 4);
		check_accepted(&seen);
	}
	free(given);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_len)
{
	struct input in = { data, data_len };
	char *t[TEXTS];
	uint8_t tail[32];
	/* Never more than what is there to be read, and no half of a pointer. */
	uint16_t size = input_u16(&in) % (SIZE_MAX_OF_STRUCT + 1);
	size -= size > 4 ? size % 8 : 0;
	for (size_t i = 0; i < sizeof(tail); i++) {
		tail[i] = input_byte(&in);
	}
	struct us_options o = { .struct_size = size };
	o.flags = input_byte(&in);
	o.target = input_byte(&in);
	o.max_concurrent_uploads = input_u16(&in);
	o.memory_limit_bytes = (uint64_t)input_u16(&in) << 10;
	o.snapshot_window_s = input_u16(&in);
	o.retention_s = input_u16(&in);
	o.reserved = input_byte(&in);
	uint16_t there = input_u16(&in);
	for (size_t i = 0; i < TEXTS; i++) {
		t[i] = there >> i & 1 ? input_string(&in) : NULL;
	}
	o.discovery_pattern = t[0];
	o.path = t[1];
	o.hostname = t[2];
	o.state_dir = t[3];
	o.directory = t[4];
	o.s3_endpoint = t[5];
	o.s3_region = t[6];
	o.s3_bucket = t[7];
	o.s3_storage_class = t[8];
	o.s3_sse = t[9];
	o.s3_sse_kms_key_id = t[10];
	check_options(&o, tail);
	for (size_t i = 0; i < TEXTS; i++) {
		free(t[i]);
	}
	return 0;
}
