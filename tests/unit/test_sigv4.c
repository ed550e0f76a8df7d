/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signatures against the examples of "Authenticating Requests: Using the
 * Authorization Header" in the S3 API reference. tests/sigv4 compares many more
 * with the AWS SDK for Go.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "../../csrc/store/sigv4.h"

#define KEY_ID "AKIAIOSFODNN7EXAMPLE"
#define SECRET "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
#define TIME "20130524T000000Z"

#define HEADER(name_, value_) \
	{ \
		name_, value_, sizeof(name_) - 1, sizeof(value_) - 1 \
	}
#define HOST HEADER("host", "examplebucket.s3.amazonaws.com")
#define EMPTY HEADER("x-amz-content-sha256", US_SHA256_EMPTY)
#define DATE HEADER("x-amz-date", TIME)
#define HELLO "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"

static struct us_sigv4_identity identity;

static int fresh_identity(void **state)
{
	(void)state;
	us_sigv4_identity_wipe(&identity);
	return us_sigv4_identity_set(&identity, KEY_ID, SECRET, NULL, NULL);
}

static const struct us_sigv4_request get_object = {
	.method = "GET",
	.path = "/test.txt",
	.query = "",
	.headers =
		(const struct us_sigv4_header[]){ HOST, HEADER("range", "bytes=0-9"), EMPTY, DATE },
	.header_count = 4,
	.payload_sha256 = US_SHA256_EMPTY,
	.time = TIME,
	.region = "us-east-1",
};

static void expect(const struct us_sigv4_request *request, const char *want)
{
	struct us_text value;
	us_text_init(&value, 4096);
	assert_int_equal(us_sigv4_authorization(&identity, request, &value, NULL), 0);
	assert_string_equal(value.data, want);
	us_text_done(&value);
}

#define GET_SIGNATURE "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
#define AUTHORIZATION(names, signature) \
	"AWS4-HMAC-SHA256 Credential=" KEY_ID \
	"/20130524/us-east-1/s3/aws4_request, SignedHeaders=" names ", Signature=" signature

static void test_get_object(void **state)
{
	(void)state;
	expect(&get_object,
	       AUTHORIZATION("host;range;x-amz-content-sha256;x-amz-date", GET_SIGNATURE));
}

static void test_put_object(void **state)
{
	(void)state;
	struct us_text path;
	us_text_init(&path, 100);
	us_text_add_encoded(&path, "/test$file.text", 15, 1);
	assert_string_equal(path.data, "/test%24file.text");
	const struct us_sigv4_header headers[] = {
		HEADER("date", "Fri, 24 May 2013 00:00:00 GMT"),
		HOST,
		HEADER("x-amz-content-sha256", HELLO),
		DATE,
		HEADER("x-amz-storage-class", "REDUCED_REDUNDANCY"),
	};
	struct us_sigv4_request request = get_object;
	request.method = "PUT";
	request.path = path.data;
	request.headers = headers;
	request.header_count = 5;
	request.payload_sha256 = HELLO;
	expect(&request,
	       AUTHORIZATION("date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
			     "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"));
	us_text_done(&path);
}

static void test_queries(void **state)
{
	(void)state;
	const struct us_sigv4_header headers[] = { HOST, EMPTY, DATE };
	struct us_sigv4_request request = get_object;
	request.path = "/";
	request.headers = headers;
	request.header_count = 3;
	request.query = "lifecycle=";
	expect(&request,
	       AUTHORIZATION("host;x-amz-content-sha256;x-amz-date",
			     "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"));
	struct us_text query;
	us_text_init(&query, 100);
	struct us_sigv4_query_pair pairs[] = { HEADER("prefix", "J"), HEADER("max-keys", "2") };
	us_sigv4_add_query(&query, pairs, 2);
	assert_string_equal(query.data, "max-keys=2&prefix=J");
	request.query = query.data;
	expect(&request,
	       AUTHORIZATION("host;x-amz-content-sha256;x-amz-date",
			     "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"));
	us_text_done(&query);
}

static void test_key_is_cached(void **state)
{
	(void)state;
	struct us_text value;
	us_text_init(&value, 4096);
	struct us_sigv4_request request = get_object;
	static const struct {
		const char *time, *region;
		uint64_t derived_count;
	} steps[] = {
		{ TIME, "us-east-1", 1 },
		{ "20130524T235959Z", "us-east-1", 1 },
		{ "20130525T000000Z", "us-east-1", 2 },
		{ "20130525T000000Z", "us-east-2", 3 },
		{ "20130525T000001Z", "us-east-2", 3 },
		{ TIME, "us-east-1", 4 },
	};
	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		request.time = steps[i].time;
		request.region = steps[i].region;
		assert_int_equal(us_sigv4_authorization(&identity, &request, &value, NULL), 0);
		assert_int_equal(identity.derived_count, steps[i].derived_count);
		us_text_clear(&value);
	}
	/* Another secret must not meet the old key. */
	assert_int_equal(us_sigv4_identity_set(&identity, KEY_ID, "other", NULL, NULL), 0);
	assert_int_equal(us_sigv4_authorization(&identity, &get_object, &value, NULL), 0);
	assert_null(strstr(value.data, GET_SIGNATURE));
	assert_int_equal(us_sigv4_identity_set(&identity, KEY_ID, SECRET, NULL, NULL), 0);
	us_text_done(&value);
	test_get_object(state);
}

static void test_header_values(void **state)
{
	(void)state;
	const struct us_sigv4_header spaced[] = { HEADER("host",
							 "  examplebucket.s3.amazonaws.com "),
						  HEADER("range", "\tbytes=0-9  "), EMPTY, DATE };
	struct us_sigv4_request request = get_object;
	request.headers = spaced;
	expect(&request,
	       AUTHORIZATION("host;range;x-amz-content-sha256;x-amz-date", GET_SIGNATURE));
}

static void test_encoding(void **state)
{
	(void)state;
	struct us_text text;
	us_text_init(&text, 2000);
	char all[255];
	for (int i = 0; i < 255; i++) {
		all[i] = (char)(i + 1);
	}
	us_text_add_encoded(&text, all, sizeof(all), 1);
	assert_int_equal(text.len, 67 + 3 * (255 - 67));
	assert_non_null(
		strstr(text.data, "%20%21%22%23%24%25%26%27%28%29%2A%2B%2C-./0123456789%3A"));
	assert_non_null(strstr(text.data, "xyz%7B%7C%7D~%7F%80"));
	us_text_clear(&text);
	us_text_add_encoded(&text, "a/b", 3, 0);
	assert_string_equal(text.data, "a%2Fb");
	us_text_done(&text);
	us_text_init(&text, 10); /* the cap holds, and failure sticks */
	us_text_puts(&text, "0123456789");
	assert_false(text.failed);
	us_text_puts(&text, "x");
	assert_true(text.failed);
	assert_string_equal(text.data, "0123456789");
	us_text_clear(&text);
	us_text_add_encoded(&text, "    ", 4, 0);
	assert_true(text.failed);
	us_text_done(&text);
}

static void test_query_order(void **state)
{
	(void)state;
	struct us_text query;
	us_text_init(&query, 1000);
	/* By encoded bytes: escapes before letters, a name before its extension. */
	struct us_sigv4_query_pair pairs[] = {
		HEADER("ab", "1"),  HEADER("a", "2"),   HEADER("\xc3\xa9", "3"),
		HEADER("a", "1"),   HEADER("B", ""),    HEADER("a~", "x y+z"),
		HEADER("a b", "/"), HEADER("a-", "&="),
	};
	us_sigv4_add_query(&query, pairs, sizeof(pairs) / sizeof(pairs[0]));
	assert_string_equal(query.data,
			    "%C3%A9=3&B=&a=1&a=2&a%20b=%2F&a-=%26%3D&ab=1&a~=x%20y%2Bz");
	us_text_done(&query);
}

static void test_identity(void **state)
{
	(void)state;
	struct us_error err = US_ERROR_INIT;
	char longer[US_TOKEN_LEN_MAX + 2];
	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	assert_int_equal(us_sigv4_identity_set(&identity, KEY_ID, "s", longer, &err), US_E_ARG);
	assert_int_equal(us_sigv4_identity_set(&identity, KEY_ID, "s p", NULL, &err), US_E_ARG);
	assert_int_equal(us_sigv4_identity_set(&identity, "k\n", "s", NULL, &err), US_E_ARG);
	assert_int_equal(us_sigv4_identity_set(&identity, "", "s", NULL, &err), US_E_ARG);
	assert_string_equal(identity.access_key_id, KEY_ID); /* untouched */
	assert_int_equal(us_sigv4_identity_set(&identity, "", "", "", &err), 0);
	assert_true(us_sigv4_is_anonymous(&identity));
	longer[US_TOKEN_LEN_MAX] = '\0';
	assert_int_equal(us_sigv4_identity_set(&identity, KEY_ID, "s", longer, &err), 0);
	us_sigv4_identity_wipe(&identity);
	static const struct us_sigv4_identity nothing;
	assert_memory_equal(&identity, &nothing, sizeof(nothing));
}

/* A region that there is no room for is not cut to another one. */
static void test_long_region(void **state)
{
	(void)state;
	struct us_text value;
	struct us_error err = US_ERROR_INIT;
	char region[US_REGION_LEN_MAX + 2];
	us_text_init(&value, 4096);
	assert_int_equal(us_sigv4_identity_set(&identity, "id", "secret", NULL, &err), 0);
	memset(region, 'r', sizeof(region) - 1);
	region[sizeof(region) - 1] = '\0';
	struct us_sigv4_request request = { .method = "GET",
					    .path = "/",
					    .query = "",
					    .payload_sha256 = US_SHA256_EMPTY,
					    .time = "20260102T030405Z",
					    .region = region };
	assert_true(us_sigv4_authorization(&identity, &request, &value, &err) < 0);
	region[US_REGION_LEN_MAX] = '\0';
	us_text_clear(&value);
	assert_int_equal(us_sigv4_authorization(&identity, &request, &value, &err), 0);
	us_text_done(&value);
	assert_int_equal(us_sigv4_identity_set(&identity, "id", "sec\x7fret", NULL, &err),
			 US_E_ARG);
	us_sigv4_identity_wipe(&identity);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_long_region),
		cmocka_unit_test_setup(test_get_object, fresh_identity),
		cmocka_unit_test_setup(test_put_object, fresh_identity),
		cmocka_unit_test_setup(test_queries, fresh_identity),
		cmocka_unit_test_setup(test_key_is_cached, fresh_identity),
		cmocka_unit_test_setup(test_header_values, fresh_identity),
		cmocka_unit_test_setup(test_encoding, fresh_identity),
		cmocka_unit_test_setup(test_query_order, fresh_identity),
		cmocka_unit_test_setup(test_identity, fresh_identity),
	};
	return cmocka_run_group_tests_name("sigv4", tests, NULL, NULL);
}
