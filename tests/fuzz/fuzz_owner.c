/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The owner object, as whoever can write to the target may leave it. What is read as a note
 * is exactly what this version writes, and can be shown.
 */
#include "fuzz.h"

#include "../../csrc/base/clock.h"
#include "../../csrc/cycle/owner_note.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_len)
{
	struct input in = { data, data_len };
	struct us_owner_note note;
	char again[US_OWNER_NOTE_LEN_MAX];
	size_t len;
	int64_t time_ns;
	char *text = input_bytes(&in, in.left, &len);
	if (us_owner_note_parse(text, len, &note) == 0) {
		require(us_owner_note_is_one(text, len));
		require(us_owner_note_format(&note, again) == len && memcmp(again, text, len) == 0);
		require(is_one_line(note.host) && is_one_line(note.place));
		require(us_time_rfc3339_parse(note.started, strlen(note.started), &time_ns) == 0);
		require(us_time_rfc3339_parse(note.renewed, strlen(note.renewed), &time_ns) == 0);
		require(note.pid >= 0 && note.commits >= 0);
		require(note.reconcile <= 1 && note.released <= 1);
	}
	free(text);
	return 0;
}
