/* SPDX-License-Identifier: Apache-2.0 */
/*
 * S3's XML, parsed with expat as a stream.
 *
 * One parser serves all documents. It keeps a stack of the elements it is in
 * (at most DEPTH_MAX) and collects character data only where the innermost
 * element is one of FIELDS, with that field's own length limit. Names count
 * without a namespace prefix. A DOCTYPE stops the parser before any declaration
 * is read, so there are no entities but the five of XML itself.
 *
 * Keys of a page lie one after the other, each with a NUL, in one text; entries
 * hold offsets. They are decoded at the end of the document, because stores
 * disagree on whether EncodingType comes before or after the keys. In that
 * encoding `+` is a space (AWS writes it so) and a literal plus is %2B.
 *
 * A DeleteResult names the keys that are not gone, one Error each; one that says
 * NoSuchKey is gone. The ids of uploads lie behind their keys in the same text.
 */
#include "s3_xml.h"

#include <expat.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <string.h>

#include "../base/alloc.h"
#include "../base/utf8.h"

#define TOKEN_LEN_MAX ((size_t)64 << 10)
#define DEPTH_MAX 16
#define FIELD_LEN_MAX ((size_t)3 * US_S3_TOKEN_LEN_MAX)
#define ESCAPED_KEY_LEN_MAX ((size_t)3 * US_S3_KEY_LEN_MAX)

enum element {
	EL_OTHER,
	EL_LIST,
	EL_CONTENTS,
	EL_UPLOADS,
	EL_UPLOAD,
	EL_DELETED,
	EL_CREATED,
	EL_COMPLETED,
	EL_ERROR,
	EL_ERROR_RESPONSE,
	EL_FIELDS, /* those below hold text */
	EL_KEY = EL_FIELDS,
	EL_SIZE,
	EL_UPLOAD_ID,
	EL_IS_TRUNCATED,
	EL_NEXT_TOKEN,
	EL_ENCODING_TYPE,
	EL_CODE,
	EL_MESSAGE,
	EL_REQUEST_ID,
	EL_REGION,
	EL_ERROR_KEY,
};

static const struct {
	const char *name;
	enum element element;
} roots[] = {
	/* those of enum us_s3_document, in its order, then the others */
	{ "ListBucketResult", EL_LIST },
	{ "ListMultipartUploadsResult", EL_UPLOADS },
	{ "DeleteResult", EL_DELETED },
	{ "InitiateMultipartUploadResult", EL_CREATED },
	{ "CompleteMultipartUploadResult", EL_COMPLETED },
	{ "Error", EL_ERROR },
	{ "ErrorResponse", EL_ERROR_RESPONSE },
};

#define ROOT_COUNT (sizeof(roots) / sizeof(roots[0]))

/* Elements that hold others. */
static const struct {
	const char *name;
	enum element element, parent;
} groups[] = {
	{ "Contents", EL_CONTENTS, EL_LIST },
	{ "Upload", EL_UPLOAD, EL_UPLOADS },
	{ "Error", EL_ERROR, EL_DELETED },
	{ "Error", EL_ERROR, EL_ERROR_RESPONSE },
};

#define GROUP_COUNT (sizeof(groups) / sizeof(groups[0]))

static const struct {
	const char *name;
	enum element element, parent;
	size_t len_max;
	int cut; /* a longer text is cut, not refused */
} fields[] = {
	{ "Key", EL_KEY, EL_CONTENTS, ESCAPED_KEY_LEN_MAX, 0 },
	{ "Size", EL_SIZE, EL_CONTENTS, 32, 0 },
	{ "IsTruncated", EL_IS_TRUNCATED, EL_LIST, 16, 0 },
	{ "NextContinuationToken", EL_NEXT_TOKEN, EL_LIST, US_S3_TOKEN_LEN_MAX, 0 },
	{ "EncodingType", EL_ENCODING_TYPE, EL_LIST, 16, 0 },
	{ "Key", EL_KEY, EL_UPLOAD, ESCAPED_KEY_LEN_MAX, 0 },
	{ "UploadId", EL_UPLOAD_ID, EL_UPLOAD, US_S3_UPLOAD_ID_LEN_MAX, 0 },
	{ "UploadId", EL_UPLOAD_ID, EL_CREATED, US_S3_UPLOAD_ID_LEN_MAX, 0 },
	{ "IsTruncated", EL_IS_TRUNCATED, EL_UPLOADS, 16, 0 },
	{ "NextKeyMarker", EL_NEXT_TOKEN, EL_UPLOADS, ESCAPED_KEY_LEN_MAX, 0 },
	{ "EncodingType", EL_ENCODING_TYPE, EL_UPLOADS, 16, 0 },
	{ "Code", EL_CODE, EL_ERROR, 63, 1 },
	{ "Message", EL_MESSAGE, EL_ERROR, 399, 1 },
	{ "RequestId", EL_REQUEST_ID, EL_ERROR, 79, 1 },
	{ "Region", EL_REGION, EL_ERROR, 63, 1 },
	{ "Key", EL_ERROR_KEY, EL_ERROR, 399, 1 },
};

#define FIELD_COUNT (sizeof(fields) / sizeof(fields[0]))

struct entry {
	size_t key_off, key_len;
	uint64_t object_len;
	size_t upload_id_off;
};

struct us_s3_page {
	XML_Parser parser;
	enum us_s3_document wanted;
	enum element root;
	enum element stack[DEPTH_MAX];
	size_t depth;
	size_t fed_len, fed_len_max;
	struct us_text value; /* of the field the parser is in */
	size_t value_len_max;
	int value_cut;
	const char *fault; /* why the document was refused, or NULL */
	int has_error, no_memory;

	int truncated, have_truncated, url_encoded;
	struct us_text token;
	struct us_text upload_id; /* of US_S3_CREATED */
	struct us_text keys;
	struct entry *entries;
	size_t entry_count, entry_cap;
	struct entry current;
	int have_key, have_size, have_id;
	struct us_s3_error_doc error, first_failure;
	size_t failure_count;
};

static void refuse(struct us_s3_page *page, const char *fault)
{
	if (!page->fault) {
		page->fault = fault;
	}
	(void)XML_StopParser(page->parser, XML_FALSE); /* fails only if already stopped */
}

static void refuse_nomem(struct us_s3_page *page)
{
	page->no_memory = 1;
	refuse(page, "out of memory");
}

static enum element root_of(const char *name)
{
	for (size_t i = 0; i < ROOT_COUNT; i++) {
		if (strcmp(roots[i].name, name) == 0) {
			return roots[i].element;
		}
	}
	return EL_OTHER;
}

static enum element child_of(struct us_s3_page *page, enum element parent, const char *name)
{
	for (size_t i = 0; i < GROUP_COUNT; i++) {
		if (groups[i].parent == parent && strcmp(groups[i].name, name) == 0) {
			return groups[i].element;
		}
	}
	if (parent >= EL_FIELDS) {
		refuse(page, "an element inside a value");
	}
	for (size_t i = 0; i < FIELD_COUNT; i++) {
		if (fields[i].parent == parent && strcmp(fields[i].name, name) == 0) {
			page->value_len_max = fields[i].len_max;
			page->value_cut = fields[i].cut;
			return fields[i].element;
		}
	}
	return EL_OTHER;
}

static void on_start(void *user, const XML_Char *name, const XML_Char **attributes)
{
	struct us_s3_page *page = user;
	(void)attributes; /* none matters */
	const char *colon = strchr(name, ':');
	const char *local = colon ? colon + 1 : name;
	if (page->depth == DEPTH_MAX) {
		refuse(page, "elements nested too deeply");
		return;
	}
	enum element element = page->depth == 0
				       ? root_of(local)
				       : child_of(page, page->stack[page->depth - 1], local);
	page->root = page->depth == 0 ? element : page->root;
	page->stack[page->depth++] = element;
	us_text_clear(&page->value);
	if (element == EL_CONTENTS || element == EL_UPLOAD) {
		page->current = (struct entry){ 0 };
		page->have_key = page->have_size = page->have_id = 0;
	} else if (element == EL_ERROR) {
		page->has_error = 1;
		page->error = (struct us_s3_error_doc){ 0 };
	}
}

static void on_text(void *user, const XML_Char *text, int len)
{
	struct us_s3_page *page = user;
	if (page->depth == 0 || page->stack[page->depth - 1] < EL_FIELDS) {
		return;
	}
	size_t add = (size_t)len;
	size_t room = page->value_len_max - page->value.len;
	if (add > room) {
		if (!page->value_cut) {
			refuse(page, "an element is too long");
			return;
		}
		add = room;
	}
	us_text_add(&page->value, text, add);
	if (page->value.failed) {
		refuse_nomem(page);
	}
}

static void end_entry(struct us_s3_page *page, enum element element)
{
	if (!page->have_key || (element == EL_CONTENTS ? !page->have_size : !page->have_id)) {
		refuse(page, element == EL_CONTENTS ? "an object without key or size"
						    : "an upload without key or id");
		return;
	}
	if (page->entry_count == US_S3_PAGE_KEYS_MAX) {
		refuse(page, "too many keys in one page");
		return;
	}
	if (page->entry_count == page->entry_cap) {
		size_t cap = page->entry_cap ? 2 * page->entry_cap : 1024;
		struct entry *entries =
			us_realloc(page->entries, us_size_mul(cap, sizeof(*entries)));
		if (!entries) {
			refuse_nomem(page);
			return;
		}
		page->entries = entries;
		page->entry_cap = cap;
	}
	page->entries[page->entry_count++] = page->current;
}

/* Appends the value to the text of keys; returns its offset. */
static size_t keep_value(struct us_s3_page *page)
{
	size_t off = page->keys.len;
	us_text_add(&page->keys, page->value.data, page->value.len);
	us_text_end_string(&page->keys);
	if (page->keys.failed) {
		refuse_nomem(page);
	}
	return off;
}

static void end_key(struct us_s3_page *page)
{
	if (page->have_key || page->value.len == 0) {
		refuse(page, "an object with two keys or an empty one");
		return;
	}
	page->current.key_len = page->value.len;
	page->current.key_off = keep_value(page);
	page->have_key = 1;
}

static void copy_text(struct us_s3_page *page, struct us_text *text, const char *value)
{
	us_text_clear(text);
	us_text_puts(text, value);
	if (text->failed) {
		refuse_nomem(page);
	}
}

static void end_upload_id(struct us_s3_page *page, const char *value)
{
	if (page->have_id || page->value.len == 0) {
		refuse(page, "an upload with two ids or an empty one");
		return;
	}
	if (page->root == EL_CREATED) {
		copy_text(page, &page->upload_id, value);
	} else {
		page->current.upload_id_off = keep_value(page);
	}
	page->have_id = 1;
}

/* The end of an Error in a DeleteResult. */
static void end_failure(struct us_s3_page *page)
{
	if (strcmp(page->error.code, "NoSuchKey") == 0) {
		return;
	}
	if (page->failure_count++ == 0) {
		page->first_failure = page->error;
	}
}

static void end_size(struct us_s3_page *page, const char *value)
{
	uint64_t len = 0;
	size_t i = 0;
	for (; value[i] >= '0' && value[i] <= '9'; i++) {
		if (__builtin_mul_overflow(len, (uint64_t)10, &len) ||
		    __builtin_add_overflow(len, (uint64_t)(value[i] - '0'), &len)) {
			break;
		}
	}
	if (page->have_size || i == 0 || value[i] != '\0') {
		refuse(page, "an object's size is not a number");
		return;
	}
	page->current.object_len = len;
	page->have_size = 1;
}

/* Cuts the half of a character that a length limit left behind. */
static size_t whole_utf8_len(const char *text, size_t len)
{
	size_t start = len;
	while (start > 0 && len - start < 4 && ((unsigned char)text[start - 1] & 0xC0) == 0x80) {
		start--;
	}
	if (start == 0) {
		return len;
	}
	unsigned char lead = (unsigned char)text[start - 1];
	size_t need = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 1;
	return len - (start - 1) < need ? start - 1 : len;
}

/* RET has room for the field's len_max and a NUL. */
static void copy_printable(const struct us_text *value, char *ret)
{
	size_t len = value->data ? whole_utf8_len(value->data, value->len) : 0;
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)value->data[i];
		ret[i] = c < ' ' || c == 0x7F ? ' ' : value->data[i];
	}
	ret[len] = '\0';
}

static void end_field(struct us_s3_page *page, enum element element)
{
	const char *value = page->value.data ? page->value.data : "";
	switch (element) {
	case EL_KEY:
		end_key(page);
		break;
	case EL_SIZE:
		end_size(page, value);
		break;
	case EL_IS_TRUNCATED:
		page->have_truncated = 1;
		page->truncated = strcmp(value, "true") == 0;
		if (!page->truncated && strcmp(value, "false") != 0) {
			refuse(page, "IsTruncated is neither true nor false");
		}
		break;
	case EL_UPLOAD_ID:
		end_upload_id(page, value);
		break;
	case EL_NEXT_TOKEN:
		copy_text(page, &page->token, value);
		break;
	case EL_ENCODING_TYPE:
		page->url_encoded = strcmp(value, "url") == 0;
		break;
	case EL_CODE:
		copy_printable(&page->value, page->error.code);
		break;
	case EL_MESSAGE:
		copy_printable(&page->value, page->error.message);
		break;
	case EL_REQUEST_ID:
		copy_printable(&page->value, page->error.request_id);
		break;
	case EL_REGION:
		copy_printable(&page->value, page->error.region);
		break;
	case EL_ERROR_KEY:
		copy_printable(&page->value, page->error.key);
		break;
	default:
		break;
	}
}

static void on_end(void *user, const XML_Char *name)
{
	struct us_s3_page *page = user;
	(void)name; /* expat has matched it with its start */
	enum element element = page->stack[--page->depth];
	if (element == EL_CONTENTS || element == EL_UPLOAD) {
		end_entry(page, element);
	} else if (element == EL_ERROR && page->root == EL_DELETED) {
		end_failure(page);
	} else if (element >= EL_FIELDS) {
		end_field(page, element);
	}
	us_text_clear(&page->value);
}

static void on_doctype(void *user, const XML_Char *name, const XML_Char *system_id,
		       const XML_Char *public_id, int has_internal_subset)
{
	(void)name, (void)system_id, (void)public_id, (void)has_internal_subset;
	refuse(user, "a DOCTYPE");
}

int32_t us_s3_page_new(struct us_s3_page **ret_page, struct us_error *err)
{
	static const XML_Memory_Handling_Suite memory = { us_alloc, us_realloc_wiped,
							  us_free_wiped };
	struct us_s3_page *page = us_alloc_zero(sizeof(*page));
	if (!page) {
		return us_fail_nomem(err);
	}
	us_text_init(&page->value, FIELD_LEN_MAX);
	us_text_init(&page->token, US_S3_TOKEN_LEN_MAX);
	us_text_init(&page->upload_id, US_S3_UPLOAD_ID_LEN_MAX);
	us_text_init(&page->keys, US_S3_PAGE_LEN_MAX + US_S3_PAGE_KEYS_MAX);
	page->fed_len_max = US_S3_PAGE_LEN_MAX;
	page->parser = XML_ParserCreate_MM(NULL, &memory, NULL);
	if (!page->parser) {
		us_s3_page_free(page);
		return us_fail_nomem(err);
	}
	*ret_page = page;
	return 0;
}

void us_s3_page_free(struct us_s3_page *page)
{
	if (!page) {
		return;
	}
	if (page->parser) {
		XML_ParserFree(page->parser);
	}
	us_text_done(&page->value);
	us_text_done(&page->token);
	us_text_done(&page->upload_id);
	us_text_done(&page->keys);
	us_free(page->entries);
	us_free_wiped(page); /* what an error repeats may be secret */
}

int32_t us_s3_page_begin(struct us_s3_page *page, enum us_s3_document document,
			 struct us_error *err)
{
	if (!XML_ParserReset(page->parser, NULL)) {
		return us_fail(err, US_E_NOMEM, "cannot reset the XML parser");
	}
	XML_SetUserData(page->parser, page);
	XML_SetElementHandler(page->parser, on_start, on_end);
	XML_SetCharacterDataHandler(page->parser, on_text);
	XML_SetStartDoctypeDeclHandler(page->parser, on_doctype);
	us_text_clear(&page->value);
	us_text_clear(&page->token);
	us_text_clear(&page->upload_id);
	us_text_clear(&page->keys);
	page->wanted = document;
	page->root = EL_OTHER;
	page->depth = 0;
	page->fed_len = 0;
	page->fault = NULL;
	page->has_error = page->no_memory = page->have_id = 0;
	page->truncated = page->have_truncated = page->url_encoded = 0;
	page->entry_count = page->failure_count = 0;
	page->error = (struct us_s3_error_doc){ 0 };
	return 0;
}

static const char *noun_of(const struct us_s3_page *page)
{
	int is_listing = page->wanted == US_S3_LISTING || page->wanted == US_S3_UPLOADS;
	return is_listing ? "listing" : "answer";
}

static int32_t fail_document(struct us_s3_page *page, struct us_error *err)
{
	enum XML_Error code = XML_GetErrorCode(page->parser);
	if (page->no_memory || code == XML_ERROR_NO_MEMORY) {
		return us_fail_nomem(err);
	}
	const char *why = page->fault ? page->fault : XML_ErrorString(code);
	return us_fail(err, US_E_HTTP, "malformed %s: %s (at byte %lld of the answer)",
		       noun_of(page), why ? why : "not XML",
		       (long long)XML_GetCurrentByteIndex(page->parser));
}

int32_t us_s3_page_feed(struct us_s3_page *page, const void *data, size_t data_len,
			struct us_error *err)
{
	if (data_len > page->fed_len_max - page->fed_len) {
		page->fault = "the answer is too long";
		return fail_document(page, err);
	}
	page->fed_len += data_len; /* so DATA_LEN fits an int */
	if (page->fault || XML_Parse(page->parser, data, (int)data_len, 0) != XML_STATUS_OK ||
	    page->fault) {
		return fail_document(page, err);
	}
	/* Expat scans an unfinished token anew with each piece: quadratic if it never ends. */
	XML_Index token_off = XML_GetCurrentByteIndex(page->parser);
	if (token_off >= 0 && page->fed_len - (size_t)token_off > data_len + TOKEN_LEN_MAX) {
		page->fault = "a tag or comment without end";
		return fail_document(page, err);
	}
	return 0;
}

static int hex_value(char c)
{
	return c >= '0' && c <= '9'   ? c - '0'
	       : c >= 'A' && c <= 'F' ? c - 'A' + 10
	       : c >= 'a' && c <= 'f' ? c - 'a' + 10
				      : -1;
}

/* Decodes in place (it only shrinks), NULs too. 0, or -1 for a broken escape. */
static int decode_key(char *key, size_t len, size_t *ret_len)
{
	size_t out = 0;
	for (size_t i = 0; i < len; i++) {
		char c = key[i];
		if (c == '+') {
			c = ' ';
		} else if (c == '%') {
			if (len - i < 3 || hex_value(key[i + 1]) < 0 || hex_value(key[i + 2]) < 0) {
				return -1;
			}
			c = (char)(hex_value(key[i + 1]) << 4 | hex_value(key[i + 2]));
			i += 2;
		}
		key[out++] = c;
	}
	key[out] = '\0';
	*ret_len = out;
	return 0;
}

/*
 * Decodes the keys. One with a NUL or of more than S3's 1,024 bytes is nothing that we
 * could have written or can ask for: it is passed over, so that a stranger who may write
 * into the bucket cannot make it unreadable.
 */
static const char *decode_keys(struct us_s3_page *page)
{
	size_t kept = 0;
	for (size_t i = 0; i < page->entry_count; i++) {
		struct entry *entry = &page->entries[i];
		char *key = page->keys.data + entry->key_off;
		if (page->url_encoded && decode_key(key, entry->key_len, &entry->key_len)) {
			return "a key with a broken escape";
		}
		if (entry->key_len <= US_S3_KEY_LEN_MAX && !memchr(key, '\0', entry->key_len)) {
			page->entries[kept++] = *entry;
		}
	}
	page->entry_count = kept;
	if (page->wanted == US_S3_UPLOADS && page->url_encoded && page->token.len > 0 &&
	    (decode_key(page->token.data, page->token.len, &page->token.len) ||
	     memchr(page->token.data, '\0', page->token.len))) {
		return "a key with a broken escape";
	}
	return NULL;
}

int32_t us_s3_page_end(struct us_s3_page *page, struct us_s3_error_doc *ret_doc,
		       struct us_error *err)
{
	ret_doc->code[0] = '\0';
	if (page->fault || XML_Parse(page->parser, "", 0, 1) != XML_STATUS_OK || page->fault) {
		return fail_document(page, err);
	}
	if (page->has_error && (page->root == EL_ERROR || page->root == EL_ERROR_RESPONSE)) {
		*ret_doc = page->error;
		return us_fail(err, US_E_HTTP, "%s: %s", page->error.code, page->error.message);
	}
	if (page->root != roots[page->wanted].element) {
		return us_fail(err, US_E_HTTP, "malformed %s: not a %s", noun_of(page),
			       roots[page->wanted].name);
	}
	page->fault = decode_keys(page);
	if (!page->fault && page->wanted == US_S3_LISTING && !page->have_truncated) {
		page->fault = "it does not say whether there is more";
	}
	if (!page->fault && page->truncated && page->token.len == 0) {
		page->fault = "it says that there is more, but not how to go on";
	}
	if (!page->fault && page->wanted == US_S3_CREATED && !page->have_id) {
		page->fault = "an upload without id";
	}
	return page->fault ? fail_document(page, err) : 0;
}

size_t us_s3_page_count(const struct us_s3_page *page)
{
	return page->entry_count;
}

struct us_s3_entry us_s3_page_entry(const struct us_s3_page *page, size_t index)
{
	const struct entry *entry = &page->entries[index];
	return (struct us_s3_entry){
		.key = page->keys.data + entry->key_off,
		.key_len = entry->key_len,
		.object_len = entry->object_len,
		.upload_id = page->wanted == US_S3_UPLOADS ? page->keys.data + entry->upload_id_off
							   : NULL,
	};
}

const char *us_s3_page_next_token(const struct us_s3_page *page)
{
	return page->truncated ? page->token.data : NULL;
}

size_t us_s3_page_failure_count(const struct us_s3_page *page)
{
	return page->failure_count;
}

const struct us_s3_error_doc *us_s3_page_first_failure(const struct us_s3_page *page)
{
	return page->failure_count > 0 ? &page->first_failure : NULL;
}

/* Parses a whole answer. White space before it: S3 sends some to keep a connection alive. */
static int32_t parse_answer(struct us_s3_page *page, const char *data, size_t data_len,
			    enum us_s3_document document, struct us_s3_error_doc *ret_doc,
			    struct us_error *err)
{
	while (data_len > 0 && (*data == ' ' || *data == '\n' || *data == '\r' || *data == '\t')) {
		data++;
		data_len--;
	}
	ret_doc->code[0] = '\0';
	int32_t rc = us_s3_page_begin(page, document, err);
	rc = rc ? rc : us_s3_page_feed(page, data, data_len, err);
	return rc ? rc : us_s3_page_end(page, ret_doc, err);
}

int us_s3_xml_error(const char *data, size_t data_len, struct us_s3_error_doc *ret_doc)
{
	struct us_s3_page *page = NULL;
	struct us_s3_error_doc doc;
	if (data_len == 0 || data_len > US_S3_ERROR_LEN_MAX) {
		return 0;
	}
	if (us_s3_page_new(&page, NULL)) {
		return US_E_NOMEM;
	}
	int32_t rc = parse_answer(page, data, data_len, US_S3_LISTING, &doc, NULL);
	int found = rc == US_E_NOMEM ? rc : rc == US_E_HTTP && doc.code[0] != '\0';
	if (found == 1) {
		*ret_doc = doc;
	}
	OPENSSL_cleanse(&doc, sizeof(doc)); /* what it repeats may be secret */
	us_s3_page_free(page);
	return found;
}

int32_t us_s3_xml_result(const char *data, size_t data_len, enum us_s3_document document,
			 char *ret_upload_id, struct us_s3_error_doc *ret_doc, struct us_error *err)
{
	struct us_s3_page *page = NULL;
	int32_t rc = us_s3_page_new(&page, err);
	ret_doc->code[0] = '\0';
	rc = rc ? rc : parse_answer(page, data, data_len, document, ret_doc, err);
	if (rc == 0 && ret_upload_id) {
		memcpy(ret_upload_id, page->upload_id.data, page->upload_id.len + 1);
	}
	us_s3_page_free(page);
	return rc;
}

/* ---- what is sent */

static int is_xml_char(uint32_t c)
{
	return (c >= 0x20 && c < US_UTF8_BYTE && c != 0xFFFE && c != 0xFFFF) || c == '\t' ||
	       c == '\n' || c == '\r';
}

/* Markup, and what a parser would change or may refuse to see literally. */
static int needs_reference(uint32_t c)
{
	return c < 0x20 || (c >= 0x7F && c < 0xA0) || c == '&' || c == '<' || c == '>' ||
	       c == '"' || c == '\'';
}

int us_s3_xml_can_hold(const char *bytes, size_t len)
{
	size_t char_len;
	for (size_t i = 0; i < len; i += char_len) {
		uint32_t c;
		char_len = us_utf8_next(bytes + i, len - i, &c);
		if (!is_xml_char(c)) {
			return 0;
		}
	}
	return 1;
}

void us_s3_xml_escape(struct us_text *text, const char *bytes, size_t len)
{
	size_t char_len;
	for (size_t i = 0; i < len; i += char_len) {
		uint32_t c;
		char reference[16];
		char_len = us_utf8_next(bytes + i, len - i, &c);
		if (needs_reference(c)) {
			(void)snprintf(reference, sizeof(reference), "&#%u;", c);
			us_text_puts(text, reference);
		} else {
			us_text_add(text, bytes + i, char_len);
		}
	}
}
