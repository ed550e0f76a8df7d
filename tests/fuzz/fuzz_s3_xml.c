/* SPDX-License-Identifier: Apache-2.0 */
/*
 * S3's XML from a stranger. The first byte is the size of the pieces that the
 * page parser is fed. What is accepted must keep its promises.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/store/s3_xml.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_len);

static void require(int condition)
{
	if (!condition) {
		abort();
	}
}

static void check_page(const struct us_s3_page *page)
{
	for (size_t i = 0; i < us_s3_page_count(page); i++) {
		struct us_s3_entry entry = us_s3_page_entry(page, i);
		require(entry.key_len <= US_S3_KEY_LEN_MAX && strlen(entry.key) == entry.key_len);
	}
	const char *token = us_s3_page_next_token(page);
	require(!token || (token[0] != '\0' && strlen(token) <= US_S3_TOKEN_LEN_MAX));
}

static void check_error(const struct us_s3_error_doc *doc)
{
	require(memchr(doc->code, '\0', sizeof(doc->code)) && doc->code[0] != '\0');
	require(memchr(doc->message, '\0', sizeof(doc->message)) != NULL);
	require(memchr(doc->request_id, '\0', sizeof(doc->request_id)) != NULL);
	require(memchr(doc->region, '\0', sizeof(doc->region)) != NULL);
	for (const char *p = doc->message; *p != '\0'; p++) {
		require((unsigned char)*p >= ' ');
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_len)
{
	static struct us_s3_page *page; /* reused, as in a listing */
	struct us_s3_error_doc doc;
	if (data_len == 0 || (!page && us_s3_page_new(&page, NULL))) {
		return 0;
	}
	size_t step = data[0] ? data[0] : 4096;
	const char *text = (const char *)data + 1;
	size_t len = data_len - 1;
	int32_t rc = us_s3_page_begin(page, NULL);
	for (size_t at = 0; at < len && rc == 0; at += step) {
		rc = us_s3_page_feed(page, text + at, len - at < step ? len - at : step, NULL);
	}
	int32_t end = us_s3_page_end(page, &doc, NULL);
	require(rc == 0 || end != 0);
	if (end == 0) {
		check_page(page);
	} else if (doc.code[0] != '\0') {
		check_error(&doc);
	}
	if (us_s3_xml_error(text, len, &doc)) {
		check_error(&doc);
		require(end != 0);
	}
	return 0;
}
