/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_STORE_S3_XML_H
#define US_STORE_S3_XML_H

#include "../base/error.h"
#include "text.h"

/*
 * The XML documents that S3 answers with: pages of listings, results, and Error.
 * Everything in them is a stranger's: sizes are bounded, and a document with a DOCTYPE
 * is refused, so no entity is ever expanded. And the escapes for those that are sent.
 */

#define US_S3_KEY_LEN_MAX 1024          /* S3's own limit, decoded */
#define US_S3_TOKEN_LEN_MAX 4096        /* continuation tokens */
#define US_S3_UPLOAD_ID_LEN_MAX 1024    /* of uploads in parts */
#define US_S3_PAGE_LEN_MAX (8u << 20)   /* one page of a listing, as XML */
#define US_S3_PAGE_KEYS_MAX 10000       /* some stores give more than was asked for */
#define US_S3_ERROR_LEN_MAX (64u << 10) /* an Error document */

/* What an Error document says. Control bytes are replaced by spaces. */
struct us_s3_error_doc {
	char code[64];
	char message[400];
	char request_id[80];
	char region[64];
	char key[400]; /* cut; of a DeleteResult only */
};

enum us_s3_document {
	US_S3_LISTING,   /* ListBucketResult (of ListObjectsV2) */
	US_S3_UPLOADS,   /* ListMultipartUploadsResult */
	US_S3_DELETED,   /* DeleteResult */
	US_S3_CREATED,   /* InitiateMultipartUploadResult */
	US_S3_COMPLETED, /* CompleteMultipartUploadResult */
};

/* 1 with *RET_DOC filled if the DATA_LEN bytes are a whole Error document (or an
 * ErrorResponse around one), 0 if they are anything else, US_E_NOMEM if that cannot be
 * told. */
int us_s3_xml_error(const char *data, size_t data_len, struct us_s3_error_doc *ret_doc);

/* Reads an answer that is to be DOCUMENT: 0, or as us_s3_page_end. RET_UPLOAD_ID
 * (US_S3_UPLOAD_ID_LEN_MAX + 1 bytes) is filled from US_S3_CREATED; NULL for others. */
int32_t us_s3_xml_result(const char *data, size_t data_len, enum us_s3_document document,
			 char *ret_upload_id, struct us_s3_error_doc *ret_doc,
			 struct us_error *err);

/* A page of a listing, or another document. Begin, feed in pieces of any length, end,
 * read the entries; then begin the next one: memory is reused. One owner. */
struct us_s3_page;

struct us_s3_entry {
	const char *key; /* decoded, NUL-terminated; valid until the next begin */
	size_t key_len;
	uint64_t object_len;   /* US_S3_LISTING */
	const char *upload_id; /* US_S3_UPLOADS; else NULL */
};

int32_t us_s3_page_new(struct us_s3_page **ret_page, struct us_error *err);
void us_s3_page_free(struct us_s3_page *page);

/* DOCUMENT: what the answer is to be. */
int32_t us_s3_page_begin(struct us_s3_page *page, enum us_s3_document document,
			 struct us_error *err);
/* 0, or US_E_HTTP ("malformed listing: ...", or "malformed answer"), US_E_NOMEM. */
int32_t us_s3_page_feed(struct us_s3_page *page, const void *data, size_t data_len,
			struct us_error *err);
/* Checks that the document is whole and decodes the keys if the answer says that
 * they are encoded. Where the document is an Error: US_E_HTTP, with *RET_DOC
 * filled (RET_DOC->code is "" otherwise). */
int32_t us_s3_page_end(struct us_s3_page *page, struct us_s3_error_doc *ret_doc,
		       struct us_error *err);

size_t us_s3_page_count(const struct us_s3_page *page);
struct us_s3_entry us_s3_page_entry(const struct us_s3_page *page, size_t index);
/* The token of the next page (US_S3_UPLOADS: the key that it goes on behind), or NULL if
 * this is the last one. */
const char *us_s3_page_next_token(const struct us_s3_page *page);

/* How many keys of a US_S3_DELETED are not gone, and the first of them (NULL for 0). */
size_t us_s3_page_failure_count(const struct us_s3_page *page);
const struct us_s3_error_doc *us_s3_page_first_failure(const struct us_s3_page *page);

/* Whether an XML 1.0 document can hold these bytes at all: not where they are no UTF-8,
 * or have control bytes or U+FFFE among them. */
int us_s3_xml_can_hold(const char *bytes, size_t len);
/* Appends such bytes as the text of an element. */
void us_s3_xml_escape(struct us_text *text, const char *bytes, size_t len);

#endif
