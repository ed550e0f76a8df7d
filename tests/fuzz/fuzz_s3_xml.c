/* SPDX-License-Identifier: Apache-2.0 */
/*
 * S3's XML from a stranger. The first byte is the size of the pieces that the
 * page parser is fed. What is accepted must keep its promises.
 */
#include "fuzz.h"

#include "../../csrc/store/s3_xml.h"

static void check_page(const struct us_s3_page *page, enum us_s3_document document)
{
	for (size_t i = 0; i < us_s3_page_count(page); i++) {
		struct us_s3_entry entry = us_s3_page_entry(page, i);
		require(entry.key_len <= US_S3_KEY_LEN_MAX && strlen(entry.key) == entry.key_len);
		require((entry.upload_id != NULL) == (document == US_S3_UPLOADS));
		require(!entry.upload_id || (entry.upload_id[0] != '\0' &&
					     strlen(entry.upload_id) <= US_S3_UPLOAD_ID_LEN_MAX));
	}
	const char *token = us_s3_page_next_token(page);
	require(!token || (token[0] != '\0' && strlen(token) <= US_S3_TOKEN_LEN_MAX));
	const struct us_s3_error_doc *first = us_s3_page_first_failure(page);
	require((first != NULL) == (us_s3_page_failure_count(page) > 0));
	require(!first || memchr(first->key, '\0', sizeof(first->key)));
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

/* Parses TEXT as DOCUMENT in pieces of STEP bytes; returns what the page's end says. */
static int32_t check_document(struct us_s3_page *page, enum us_s3_document document,
			      const char *text, size_t len, size_t step)
{
	struct us_s3_error_doc doc;
	int32_t rc = us_s3_page_begin(page, document, NULL);
	for (size_t at = 0; at < len && rc == 0; at += step) {
		rc = us_s3_page_feed(page, text + at, len - at < step ? len - at : step, NULL);
	}
	int32_t end = us_s3_page_end(page, &doc, NULL);
	require(rc == 0 || end != 0);
	if (end == 0) {
		check_page(page, document);
	} else if (doc.code[0] != '\0') {
		check_error(&doc);
	}
	return end;
}

/* What can be escaped comes back from the parser as it was. */
static void check_escape(struct us_s3_page *page, const char *key, size_t len)
{
	struct us_text text;
	if (len == 0 || len > US_S3_KEY_LEN_MAX || !us_s3_xml_can_hold(key, len)) {
		return;
	}
	us_text_init(&text, US_S3_PAGE_LEN_MAX);
	us_text_puts(&text, "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Size>1</Size><Key>");
	us_s3_xml_escape(&text, key, len);
	us_text_puts(&text, "</Key></Contents></ListBucketResult>");
	require(check_document(page, US_S3_LISTING, text.data, text.len, 4096) == 0);
	struct us_s3_entry entry = us_s3_page_entry(page, 0);
	require(entry.key_len == len && memcmp(entry.key, key, len) == 0);
	us_text_done(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_len)
{
	static struct us_s3_page *page; /* reused, as in a listing */
	struct us_s3_error_doc doc;
	char id[US_S3_UPLOAD_ID_LEN_MAX + 1];
	if (data_len == 0 || (!page && us_s3_page_new(&page, NULL))) {
		return 0;
	}
	size_t step = data[0] ? data[0] : 4096;
	const char *text = (const char *)data + 1;
	size_t len = data_len - 1;
	int good = 0;
	for (enum us_s3_document d = US_S3_LISTING; d <= US_S3_COMPLETED; d++) {
		good += check_document(page, d, text, len, step) == 0;
	}
	require(good <= 1);
	if (us_s3_xml_error(text, len, &doc)) {
		check_error(&doc);
		require(good == 0);
	}
	if (us_s3_xml_result(text, len, US_S3_CREATED, id, &doc, NULL) == 0) {
		require(id[0] != '\0' && strlen(id) <= US_S3_UPLOAD_ID_LEN_MAX);
	}
	check_escape(page, text, len);
	return 0;
}
