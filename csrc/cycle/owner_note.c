/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The owner object's text. Strict in reading: what is not a note that this version can
 * have written is none, and whoever wrote it has to be asked.
 */
#include "owner_note.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "../base/clock.h"
#include "../base/escape.h"

#define MAGIC "litestream multi_db owner "
#define FIRST_LINE MAGIC "1\n"

size_t us_owner_note_format(const struct us_owner_note *note, char *ret)
{
	int len =
		snprintf(ret, US_OWNER_NOTE_LEN_MAX,
			 FIRST_LINE "host %s\npid %" PRId64 "\nplace %s\nrun %016" PRIx64
				    "\nstate %016" PRIx64 "\nstarted %s\nrenewed %s\n"
				    "commits %" PRId64 "\nreconcile %u\nreleased %u\n",
			 note->host, note->pid, note->place, note->run, note->state, note->started,
			 note->renewed, note->commits, note->reconcile, note->released);
	_Static_assert(sizeof(*note) + 300 < US_OWNER_NOTE_LEN_MAX, "it always fits");
	return (size_t)len;
}

struct reader {
	const char *at, *end;
	int failed;
};

/* The value of the line `NAME value`, up to CAP - 1 bytes. */
static void take(struct reader *reader, const char *name, char *ret, size_t cap)
{
	size_t name_len = strlen(name);
	const char *line = reader->at;
	const char *stop = memchr(line, '\n', (size_t)(reader->end - line));
	if (!stop || (size_t)(stop - line) <= name_len || memcmp(line, name, name_len) != 0 ||
	    line[name_len] != ' ' || (size_t)(stop - line) - name_len - 1 >= cap) {
		reader->failed = 1;
		ret[0] = '\0';
		return;
	}
	size_t len = (size_t)(stop - line) - name_len - 1;
	memcpy(ret, line + name_len + 1, len);
	ret[len] = '\0';
	reader->failed |= strlen(ret) != len;
	reader->at = stop + 1;
}

/* A decimal number of 0..MAX (at most 18 digits). */
static int64_t take_number(struct reader *reader, const char *name, int64_t max)
{
	char text[19];
	int64_t number = 0;
	take(reader, name, text, sizeof(text));
	const char *p = text;
	for (; *p >= '0' && *p <= '9'; p++) {
		number = number * 10 + (*p - '0');
	}
	reader->failed |= p == text || *p != '\0' || number > max;
	return reader->failed ? 0 : number;
}

static uint64_t take_hex(struct reader *reader, const char *name)
{
	static const char digits[] = "0123456789abcdef";
	char text[17];
	uint64_t number = 0;
	take(reader, name, text, sizeof(text));
	for (const char *p = text; *p != '\0'; p++) {
		const char *digit = strchr(digits, *p);
		reader->failed |= !digit;
		number = number << 4 | (digit ? (uint64_t)(digit - digits) : 0);
	}
	reader->failed |= strlen(text) != 16;
	return number;
}

/* Whether TEXT is what NOTE, read from it, is written as: no leading zeros, nothing after
 * it, times that exist, names that can be shown. */
static int is_written(const struct us_owner_note *note, const char *text, size_t len)
{
	char again[US_OWNER_NOTE_LEN_MAX], plain[sizeof(note->host)];
	int64_t time_ns;
	_Static_assert(sizeof(note->place) <= sizeof(plain), "room for either");
	return us_owner_note_format(note, again) == len && memcmp(again, text, len) == 0 &&
	       us_unescape(note->host, strlen(note->host), plain) >= 0 &&
	       us_unescape(note->place, strlen(note->place), plain) >= 0 &&
	       !us_time_rfc3339_parse(note->started, strlen(note->started), &time_ns) &&
	       !us_time_rfc3339_parse(note->renewed, strlen(note->renewed), &time_ns);
}

int us_owner_note_is_one(const char *text, size_t len)
{
	return len >= strlen(MAGIC) && memcmp(text, MAGIC, strlen(MAGIC)) == 0;
}

int us_owner_note_parse(const char *text, size_t len, struct us_owner_note *ret_note)
{
	const size_t first_len = strlen(FIRST_LINE);
	struct reader reader = { .at = text + first_len, .end = text + len };
	if (len < first_len || memcmp(text, FIRST_LINE, first_len) != 0) {
		return -1;
	}
	take(&reader, "host", ret_note->host, sizeof(ret_note->host));
	ret_note->pid = take_number(&reader, "pid", INT32_MAX);
	take(&reader, "place", ret_note->place, sizeof(ret_note->place));
	ret_note->run = take_hex(&reader, "run");
	ret_note->state = take_hex(&reader, "state");
	take(&reader, "started", ret_note->started, sizeof(ret_note->started));
	take(&reader, "renewed", ret_note->renewed, sizeof(ret_note->renewed));
	ret_note->commits = take_number(&reader, "commits", INT64_MAX);
	ret_note->reconcile = (uint32_t)take_number(&reader, "reconcile", 1);
	ret_note->released = (uint32_t)take_number(&reader, "released", 1);
	return reader.failed || !is_written(ret_note, text, len) ? -1 : 0;
}
