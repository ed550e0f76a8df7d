/* SPDX-License-Identifier: Apache-2.0 */
/* S3's XML: answers of real stores, and documents that no store should send. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/store/s3_xml.h"

#define HEAD "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
#define LIST HEAD "<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">"
#define END "</ListBucketResult>"
#define LAST "<IsTruncated>false</IsTruncated>"
#define ENTRY(key, size) "<Contents><Key>" key "</Key><Size>" size "</Size></Contents>"

static struct us_s3_page *page;
static struct us_s3_error_doc doc;
static struct us_error err = US_ERROR_INIT;

static int page_new(void **state)
{
	(void)state;
	return us_s3_page_new(&page, NULL);
}

static int page_free(void **state)
{
	(void)state;
	us_s3_page_free(page);
	return 0;
}

/* Parses TEXT in pieces of STEP bytes. */
static int32_t parse_steps(const char *text, size_t len, size_t step)
{
	int32_t rc = us_s3_page_begin(page, US_S3_LISTING, &err);
	for (size_t at = 0; at < len && rc == 0; at += step) {
		rc = us_s3_page_feed(page, text + at, len - at < step ? len - at : step, &err);
	}
	return rc ? rc : us_s3_page_end(page, &doc, &err);
}

static int32_t parse(const char *text)
{
	return parse_steps(text, strlen(text), 65536);
}

static void expect_entry(size_t index, const char *key, uint64_t len)
{
	struct us_s3_entry entry = us_s3_page_entry(page, index);
	assert_string_equal(entry.key, key);
	assert_int_equal(entry.key_len, strlen(key));
	assert_int_equal(entry.object_len, len);
}

static void test_aws(void **state)
{
	(void)state;
	static const char text[] =
		LIST "<Name>bucket</Name><Prefix/><NextContinuationToken>1ueGcxLPRx1Tr/"
		     "XYExHnhbYLgveDs2J/wm36Hy4vbOwM="
		     "</NextContinuationToken><KeyCount>2</KeyCount><MaxKeys>1000</MaxKeys>"
		     "<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>"
		     "<Contents><Key>a/b+c%2Bd%25/%C3%A9</"
		     "Key><LastModified>2009-10-12T17:50:30.000Z</LastModified>"
		     "<ETag>&quot;fba9dede5f27731c9771645a39863328&quot;</ETag><Size>434234</Size>"
		     "<Owner><ID>x</ID><DisplayName>Key</DisplayName></Owner>"
		     "<StorageClass>STANDARD</StorageClass></Contents>"
		     "<Contents><Key>x&amp;y&#65;</Key><Size>18446744073709551615</Size></Contents>"
		     "<CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes>" END;
	for (size_t step = 1; step < 40; step++) {
		assert_int_equal(parse_steps(text, sizeof(text) - 1, step), 0);
		assert_int_equal(us_s3_page_count(page), 2);
		expect_entry(0, "a/b c+d%/\xc3\xa9", 434234);
		expect_entry(1, "x&yA", UINT64_MAX);
		assert_string_equal(us_s3_page_next_token(page),
				    "1ueGcxLPRx1Tr/XYExHnhbYLgveDs2J/wm36Hy4vbOwM=");
	}
}

/* MinIO tells the encoding after the keys; others do not encode at all. */
static void test_encoding_type(void **state)
{
	(void)state;
	assert_int_equal(
		parse(LIST LAST ENTRY("a%20b+c", "1") "<EncodingType>url</EncodingType>" END), 0);
	expect_entry(0, "a b c", 1);
	assert_int_equal(parse(LIST LAST ENTRY("a%20b+c", "1") END), 0);
	expect_entry(0, "a%20b+c", 1);
	assert_null(us_s3_page_next_token(page));
	assert_int_equal(
		parse(LIST LAST "<EncodingType>url</EncodingType>" ENTRY("%4a%4A%2f", "1") END), 0);
	expect_entry(0, "JJ/", 1);
	static const char *const bad[] = { "a%",   "a%2",  "a%zz", "a%4g", "a%G4",
					   "a%4`", "a%@4", "a%:4", "a%/4" };
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		char text[512];
		(void)snprintf(text, sizeof(text),
			       LIST LAST "<EncodingType>url</EncodingType>" ENTRY("%s", "1") END,
			       bad[i]);
		assert_int_equal(parse(text), US_E_HTTP);
		assert_non_null(
			strstr(err.message, "malformed listing: a key with a broken escape"));
	}
	assert_int_equal(parse(LIST LAST END), 0);
	assert_int_equal(us_s3_page_count(page), 0);
	/* Half a listing must not pass for a whole one. */
	assert_int_equal(parse(LIST ENTRY("a", "1") END), US_E_HTTP);
	assert_non_null(strstr(err.message, "whether there is more"));
	/* A key that is nobody's does not make a bucket unreadable. */
	assert_int_equal(parse(LIST LAST "<EncodingType>url</EncodingType>" ENTRY("a%00b", "1")
				       ENTRY("c%2Fd", "2") END),
			 0);
	assert_int_equal(us_s3_page_count(page), 1);
	expect_entry(0, "c/d", 2);
}

static void test_namespace_prefix(void **state)
{
	(void)state;
	assert_int_equal(
		parse(HEAD "<s:ListBucketResult xmlns:s=\"u\"><s:IsTruncated>false</s:IsTruncated>"
			   "<s:Contents><s:Key>k</s:Key><s:Size>3</s:Size></s:Contents>"
			   "</s:ListBucketResult>"),
		0);
	expect_entry(0, "k", 3);
}

static void test_malformed(void **state)
{
	(void)state;
	static const struct {
		const char *text, *message;
	} cases[] = {
		{ "", "no element found" },
		{ "not xml", "malformed listing" },
		{ LIST LAST ENTRY("a", "1"), "no element found" },
		{ LIST "<IsTruncated>fal", "no element found" },
		{ LIST LAST END "<more/>", "junk after document element" },
		{ LIST "</Contents>" END, "mismatched tag" },
		{ LIST "<IsTruncated>maybe</IsTruncated>" END, "IsTruncated" },
		{ LIST "<IsTruncated>true</IsTruncated>" END, "not how to go on" },
		{ LIST LAST "<Contents><Size>1</Size></Contents>" END, "without key or size" },
		{ LIST LAST "<Contents><Key>a</Key></Contents>" END, "without key or size" },
		{ LIST LAST ENTRY("", "1") END, "two keys or an empty one" },
		{ LIST LAST "<Contents><Key>a</Key><Key>b</Key><Size>1</Size></Contents>" END,
		  "two keys" },
		{ LIST LAST ENTRY("a", "-1") END, "size is not a number" },
		{ LIST LAST ENTRY("a", "") END, "size is not a number" },
		{ LIST LAST ENTRY("a", "1x") END, "size is not a number" },
		{ LIST LAST ENTRY("a", "18446744073709551616") END, "size is not a number" },
		{ LIST LAST ENTRY("a", "99999999999999999999") END, "size is not a number" },
		{ LIST LAST ENTRY("a", ":") END, "size is not a number" },
		{ LIST LAST "<Contents><Key>a</Key><Size>1</Size><Size>1</Size></Contents>" END,
		  "size is not a number" },
		{ LIST LAST "<Contents><Key>a<b/>c</Key><Size>1</Size></Contents>" END,
		  "an element inside a value" },
		{ "<html><body>hello</body></html>", "not a ListBucketResult" },
		{ HEAD "<!DOCTYPE x><ListBucketResult/>", "a DOCTYPE" },
		{ HEAD "<!DOCTYPE x SYSTEM \"file:///etc/passwd\"><ListBucketResult/>",
		  "a DOCTYPE" },
		{ LIST LAST ENTRY("&undefined;", "1") END, "undefined entity" },
		{ LIST LAST ENTRY("\xff", "1") END, "not well-formed" },
		{ LIST LAST ENTRY("a&#0;b", "1") END, "reference to invalid character number" },
		{ "<a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a/>", "nested too deeply" },
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		for (size_t step = 1; step < 100000; step += 99998) {
			int32_t rc = parse_steps(cases[i].text, strlen(cases[i].text), step);
			if (rc != US_E_HTTP || !strstr(err.message, cases[i].message) ||
			    !strstr(err.message, "malformed listing: ")) {
				fail_msg("%zu: %d %s", i, rc, err.message);
			}
			assert_string_equal(doc.code, "");
		}
	}
	assert_int_equal(parse(LIST LAST ENTRY("a", "1") END), 0); /* and the parser still works */
}

static void test_bombs(void **state)
{
	(void)state;
	char laughs[4096] = HEAD "<!DOCTYPE l [<!ENTITY a0 \"ha\">";
	for (int i = 1; i < 20; i++) {
		char line[128];
		(void)snprintf(line, sizeof(line), "<!ENTITY a%d \"&a%d;&a%d;&a%d;&a%d;\">", i,
			       i - 1, i - 1, i - 1, i - 1);
		(void)strncat(laughs, line, sizeof(laughs) - strlen(laughs) - 1);
	}
	(void)strncat(laughs, "]><ListBucketResult>&a19;</ListBucketResult>",
		      sizeof(laughs) - strlen(laughs) - 1);
	assert_int_equal(parse(laughs), US_E_HTTP);
	assert_non_null(strstr(err.message, "a DOCTYPE"));

	/* A document that does not end, of comments, of names, of one value. */
	static const char *const endless[] = { "<!-- x -->", "<CommonPrefixes></CommonPrefixes>",
					       "x" };
	char *block = malloc(1 << 20);
	for (size_t i = 0; i < 3; i++) {
		size_t len = 0;
		while (len + 100 < 1 << 20) {
			len += (size_t)snprintf(block + len, 100, "%s", endless[i]);
		}
		assert_int_equal(us_s3_page_begin(page, US_S3_LISTING, &err), 0);
		assert_int_equal(us_s3_page_feed(page, LIST, sizeof(LIST) - 1, &err), 0);
		int32_t rc = 0;
		size_t blocks = 0;
		while (rc == 0 && blocks < 20) {
			rc = us_s3_page_feed(page, block, len, &err);
			blocks++;
		}
		assert_int_equal(rc, US_E_HTTP);
		assert_non_null(strstr(err.message, "too long"));
		assert_in_range(blocks, 1, 9);
		assert_int_equal(us_s3_page_end(page, &doc, &err), US_E_HTTP);
	}
	/* Too many keys, a key too long, a token too long. */
	assert_int_equal(us_s3_page_begin(page, US_S3_LISTING, &err), 0);
	assert_int_equal(us_s3_page_feed(page, LIST LAST, sizeof(LIST LAST) - 1, &err), 0);
	int32_t rc = 0;
	for (size_t i = 0; i <= US_S3_PAGE_KEYS_MAX && rc == 0; i++) {
		rc = us_s3_page_feed(page, ENTRY("k", "1"), sizeof(ENTRY("k", "1")) - 1, &err);
	}
	assert_int_equal(rc, US_E_HTTP);
	assert_non_null(strstr(err.message, "too many keys"));
	memset(block, 'k', 1 << 16);
	static const struct {
		size_t len;
		const char *before, *after;
		int32_t rc;
	} lengths[] = {
		{ 1024, LIST LAST "<Contents><Key>", "</Key><Size>1</Size></Contents>" END, 0 },
		{ 1025, LIST LAST "<Contents><Key>", "</Key><Size>1</Size></Contents>" END, 0 },
		{ 3073, LIST LAST "<Contents><Key>", "</Key><Size>1</Size></Contents>" END,
		  US_E_HTTP },
		{ 4096, LIST "<IsTruncated>true</IsTruncated><NextContinuationToken>",
		  "</NextContinuationToken>" END, 0 },
		{ 4097, LIST "<IsTruncated>true</IsTruncated><NextContinuationToken>",
		  "</NextContinuationToken>" END, US_E_HTTP },
	};
	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		char text[8192];
		(void)snprintf(text, sizeof(text), "%s%.*s%s", lengths[i].before,
			       (int)lengths[i].len, block, lengths[i].after);
		assert_int_equal(parse(text), lengths[i].rc);
		assert_true(lengths[i].len != 1025 || us_s3_page_count(page) == 0);
	}
	free(block);
}

static void test_errors(void **state)
{
	(void)state;
	static const char text[] = HEAD
		"<Error><Code>SignatureDoesNotMatch</Code><Message>The request signature we "
		"calculated\n"
		"does not match &#127;</Message><AWSAccessKeyId>AKIA</AWSAccessKeyId>"
		"<StringToSign>secret things</StringToSign><RequestId>4442587FB7D0A2F9</RequestId>"
		"<Region>eu-west-1</Region><HostId>x</HostId></Error>";
	assert_int_equal(us_s3_xml_error(text, sizeof(text) - 1, &doc), 1);
	assert_string_equal(doc.code, "SignatureDoesNotMatch");
	assert_string_equal(doc.message, "The request signature we calculated does not match  ");
	assert_string_equal(doc.request_id, "4442587FB7D0A2F9");
	assert_string_equal(doc.region, "eu-west-1");
	/* In place of a listing. */
	assert_int_equal(parse(text), US_E_HTTP);
	assert_string_equal(doc.code, "SignatureDoesNotMatch");
	static const char wrapped[] =
		"<ErrorResponse><Error><Code>X</Code></Error></ErrorResponse>";
	assert_int_equal(us_s3_xml_error(wrapped, sizeof(wrapped) - 1, &doc), 1);
	assert_string_equal(doc.code, "X");
	assert_string_equal(doc.message, "");
	static const char *const none[] = {
		"",
		"<Error>",
		"<Error/>",
		"<Error><Code></Code></Error>",
		LIST LAST END,
		"text",
		"<html><Error><Code>X</Code></Error></html>",
		"<!DOCTYPE a><Error><Code>X</Code></Error>",
	};
	for (size_t i = 0; i < sizeof(none) / sizeof(none[0]); i++) {
		assert_int_equal(us_s3_xml_error(none[i], strlen(none[i]), &doc), 0);
	}
	/* Long texts are cut, at whole characters. */
	char longer[8192] = "<Error><Code>";
	for (int i = 0; i < 100; i++) {
		(void)strncat(longer, "C", sizeof(longer) - strlen(longer) - 1);
	}
	(void)strncat(longer, "</Code><Message>", sizeof(longer) - strlen(longer) - 1);
	for (int i = 0; i < 1000; i++) {
		(void)strncat(longer, "\xe2\x82\xac", sizeof(longer) - strlen(longer) - 1);
	}
	(void)strncat(longer, "x</Message></Error>", sizeof(longer) - strlen(longer) - 1);
	assert_int_equal(us_s3_xml_error(longer, strlen(longer), &doc), 1);
	assert_int_equal(strlen(doc.code), 63);
	assert_int_equal(strlen(doc.message), 399);
}

/* A message of FILL bytes and CHARACTER; WANT bytes are kept of it. */
static void check_cut(size_t fill, const char *character, size_t want)
{
	char text[1000], message[600];
	memset(message, 'a', fill);
	(void)snprintf(message + fill, sizeof(message) - fill, "%sbbbb", character);
	(void)snprintf(text, sizeof(text), "<Error><Code>c</Code><Message>%s</Message></Error>",
		       message);
	assert_int_equal(us_s3_xml_error(text, strlen(text), &doc), 1);
	assert_int_equal(strlen(doc.message), want);
	assert_memory_equal(doc.message, message, want);
}

static void test_cut_errors(void **state)
{
	(void)state;
	static const char *const characters[] = { "x", "\xc3\xa9", "\xe2\x82\xac",
						  "\xf0\x9f\x98\x80" };
	for (size_t i = 0; i < 4; i++) { /* the character ends at the limit, or is cut by it */
		size_t len = strlen(characters[i]);
		check_cut(399 - len, characters[i], 399);
		for (size_t more = 1; more < len; more++) {
			check_cut(399 - len + more, characters[i], 399 - len + more);
		}
	}
	/* White space before a document is none of it; what is too long is none. */
	static const char padded[] = " \t\r\n<Error><Code>X</Code></Error>";
	assert_int_equal(us_s3_xml_error(padded, sizeof(padded) - 1, &doc), 1);
	assert_int_equal(us_s3_xml_error(" \n\t\r", 4, &doc), 0);
	char *much = malloc(US_S3_ERROR_LEN_MAX + 1);
	memset(much, ' ', US_S3_ERROR_LEN_MAX + 1);
	memcpy(much + US_S3_ERROR_LEN_MAX + 1 - 29, padded + 4, 29);
	assert_int_equal(us_s3_xml_error(much, US_S3_ERROR_LEN_MAX + 1, &doc), 0);
	assert_int_equal(us_s3_xml_error(much + 1, US_S3_ERROR_LEN_MAX, &doc), 1);
	free(much);
	us_s3_page_free(NULL);
}

static int32_t parse_as(enum us_s3_document document, const char *text)
{
	int32_t rc = us_s3_page_begin(page, document, &err);
	rc = rc ? rc : us_s3_page_feed(page, text, strlen(text), &err);
	return rc ? rc : us_s3_page_end(page, &doc, &err);
}

static void test_uploads(void **state)
{
	(void)state;
	assert_int_equal(
		parse_as(US_S3_UPLOADS, HEAD
			 "<ListMultipartUploadsResult><Bucket>b</Bucket><KeyMarker/>"
			 "<NextKeyMarker>k%26+2</NextKeyMarker><EncodingType>url</EncodingType>"
			 "<IsTruncated>true</IsTruncated><Upload><Key>k+1</Key>"
			 "<UploadId>a+b%41</UploadId><Owner><ID>x</ID></Owner></Upload>"
			 "<Upload><UploadId>second</UploadId><Key>k%262</Key></Upload>"
			 "</ListMultipartUploadsResult>"),
		0);
	assert_int_equal(us_s3_page_count(page), 2);
	expect_entry(0, "k 1", 0);
	expect_entry(1, "k&2", 0);
	assert_string_equal(us_s3_page_entry(page, 0).upload_id, "a+b%41"); /* never encoded */
	assert_string_equal(us_s3_page_entry(page, 1).upload_id, "second");
	assert_string_equal(us_s3_page_next_token(page), "k& 2");
	assert_int_equal(parse_as(US_S3_LISTING, LIST LAST ENTRY("k", "1") END), 0);
	assert_null(us_s3_page_entry(page, 0).upload_id);
	/* Where to go on, as broken as a key can be. */
	static const char *const tokens[] = { "k%2", "k%00x" };
	for (size_t i = 0; i < 2; i++) {
		char text[400];
		(void)snprintf(text, sizeof(text),
			       "<ListMultipartUploadsResult><NextKeyMarker>%s</NextKeyMarker>"
			       "<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>"
			       "</ListMultipartUploadsResult>",
			       tokens[i]);
		assert_int_equal(parse_as(US_S3_UPLOADS, text), US_E_HTTP);
		assert_non_null(strstr(err.message, "a key with a broken escape"));
	}
	/* One document in place of another. */
	assert_int_equal(parse_as(US_S3_UPLOADS, LIST LAST END), US_E_HTTP);
	assert_int_equal(parse_as(US_S3_DELETED, LIST LAST END), US_E_HTTP);
	assert_int_equal(parse_as(US_S3_LISTING, "<DeleteResult/>"), US_E_HTTP);
	assert_string_equal(err.message, "malformed listing: not a ListBucketResult");
}

static void test_deleted(void **state)
{
	(void)state;
	assert_int_equal(parse_as(US_S3_DELETED, "<DeleteResult/>"), 0);
	assert_int_equal(us_s3_page_failure_count(page), 0);
	assert_null(us_s3_page_first_failure(page));
	assert_int_equal(
		parse_as(US_S3_DELETED,
			 "<DeleteResult><Deleted><Key>a</Key></Deleted>"
			 "<Error><Key>b</Key><Code>NoSuchKey</Code></Error>"
			 "<Error><Key>c&#10;&amp;d</Key><Code>AccessDenied</Code><Message>m</"
			 "Message>"
			 "</Error><Error><Code>Other</Code><Key>e</Key></Error></DeleteResult>"),
		0);
	assert_int_equal(us_s3_page_failure_count(page), 2);
	assert_string_equal(us_s3_page_first_failure(page)->key, "c &d");
	assert_string_equal(us_s3_page_first_failure(page)->code, "AccessDenied");
	assert_string_equal(us_s3_page_first_failure(page)->message, "m");
	assert_int_equal(parse_as(US_S3_DELETED, "<Error><Code>X</Code></Error>"), US_E_HTTP);
	assert_string_equal(doc.code, "X");
	assert_int_equal(parse_as(US_S3_DELETED, "<DeleteResult><Error/></DeleteResult>"), 0);
	assert_int_equal(us_s3_page_failure_count(page), 1); /* not gone, whatever it is */
}

static void test_results(void **state)
{
	(void)state;
	char id[US_S3_UPLOAD_ID_LEN_MAX + 1], text[4096];
	static const char created[] =
		"  \n" HEAD "<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>k</Key>"
		"<UploadId>VXBsb2Fk&amp;</UploadId></InitiateMultipartUploadResult>";
	/* White space before the declaration, which keeps a connection alive, is no fault. */
	assert_int_equal(
		us_s3_xml_result(created, sizeof(created) - 1, US_S3_CREATED, id, &doc, &err), 0);
	assert_string_equal(id, "VXBsb2Fk&");
	static const char completed[] = HEAD "\n \n<CompleteMultipartUploadResult><ETag>x</ETag>"
					     "</CompleteMultipartUploadResult>";
	assert_int_equal(us_s3_xml_result(completed, sizeof(completed) - 1, US_S3_COMPLETED, NULL,
					  &doc, &err),
			 0);
	assert_int_equal(
		us_s3_xml_result(completed, sizeof(completed) - 1, US_S3_CREATED, id, &doc, &err),
		US_E_HTTP);
	static const char *const bad[] = {
		"",
		" ",
		"<InitiateMultipartUploadResult/>",
		"<InitiateMultipartUploadResult><UploadId/></InitiateMultipartUploadResult>",
		"<InitiateMultipartUploadResult><UploadId>a</UploadId><UploadId>b</UploadId>"
		"</InitiateMultipartUploadResult>",
		"<InitiateMultipartUploadResult><UploadId>a</UploadId>",
		"<Error><Code>InternalError</Code></Error>",
	};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(
			us_s3_xml_result(bad[i], strlen(bad[i]), US_S3_CREATED, id, &doc, &err),
			US_E_HTTP);
	}
	assert_string_equal(doc.code, "InternalError");
	assert_string_equal(id, "VXBsb2Fk&"); /* untouched */
	for (int len = US_S3_UPLOAD_ID_LEN_MAX; len < US_S3_UPLOAD_ID_LEN_MAX + 2; len++) {
		(void)snprintf(text, sizeof(text),
			       "<InitiateMultipartUploadResult><UploadId>%0*d</UploadId>"
			       "</InitiateMultipartUploadResult>",
			       len, 0);
		assert_int_equal(
			us_s3_xml_result(text, strlen(text), US_S3_CREATED, id, &doc, &err),
			len > US_S3_UPLOAD_ID_LEN_MAX ? US_E_HTTP : 0);
	}
}

/* What is escaped comes back from the parser as it was. */
static void test_escape(void **state)
{
	(void)state;
	struct us_text text;
	us_text_init(&text, 65536);
	char all[1024];
	size_t len = 0;
	for (int c = 1; c < 0x80; c++) {
		if (c >= 0x20 || c == '\t' || c == '\n' || c == '\r') {
			all[len++] = (char)c;
		}
	}
	for (int c = 0x80; c < 0xC0; c++) { /* C1 and some more */
		all[len++] = (char)0xC2;
		all[len++] = (char)c;
	}
	(void)snprintf(all + len, sizeof(all) - len,
		       "]]>\xe2\x80\xa8\xef\xbf\xbd\xf4\x8f\xbf\xbf\r\n");
	len = strlen(all);
	assert_true(us_s3_xml_can_hold(all, len));
	us_text_puts(&text, LIST LAST "<Contents><Key>");
	us_s3_xml_escape(&text, all, len);
	us_text_puts(&text, "</Key><Size>1</Size></Contents>" END);
	assert_int_equal(parse(text.data), 0);
	expect_entry(0, all, 1);
	assert_null(strchr(text.data, '\r'));
	assert_null(strstr(text.data, "\xc2\x85"));
	us_text_done(&text);
	static const char *const never[] = { "\x01",         "a\x1f",        "\xff",
					     "\xc2",         "\xed\xa0\x80", "\xef\xbf\xbe",
					     "\xef\xbf\xbf", "\xc0\x80",     "\xf4\x90\x80\x80" };
	for (size_t i = 0; i < sizeof(never) / sizeof(never[0]); i++) {
		assert_false(us_s3_xml_can_hold(never[i], strlen(never[i])));
	}
	assert_false(us_s3_xml_can_hold("a\0b", 3));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_aws),
		cmocka_unit_test(test_encoding_type),
		cmocka_unit_test(test_namespace_prefix),
		cmocka_unit_test(test_malformed),
		cmocka_unit_test(test_bombs),
		cmocka_unit_test(test_errors),
		cmocka_unit_test(test_cut_errors),
		cmocka_unit_test(test_uploads),
		cmocka_unit_test(test_deleted),
		cmocka_unit_test(test_results),
		cmocka_unit_test(test_escape),
	};
	return cmocka_run_group_tests_name("s3_xml", tests, page_new, page_free);
}
