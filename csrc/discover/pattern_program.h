/* SPDX-License-Identifier: Apache-2.0 */
#ifndef US_DISCOVER_PATTERN_PROGRAM_H
#define US_DISCOVER_PATTERN_PROGRAM_H

#include "pattern.h"

/*
 * The compiled form of a pattern: written by pattern_compile.c, read by pattern.c,
 * and by nobody else. A wildcard-free prefix, and below it up to 64 components. A
 * component is one of
 *
 *	LITERAL	no wildcard; compared byte by byte
 *	AFFIX	one `*` or {name} between literal text ("*.db"): two comparisons
 *	GLOB	anything else: a list of tokens
 *	DEEP	`**`
 *
 * Tokens: CHAR, ANY (`?`) and SET match one character; STAR any number, at least
 * one where it is alone in its capture. Characters are what us_utf8_next says, in
 * patterns and names alike. Comparing the bytes of a LITERAL or AFFIX is comparing
 * characters as long as its text is valid UTF-8 (a character never begins inside
 * another one); an AFFIX with other text is a GLOB.
 *
 * Every token is either CHAR or inside a capture, so that captures give the path
 * back.
 */

enum { TOKEN_CHAR, TOKEN_ANY, TOKEN_SET, TOKEN_STAR };

struct token {
	uint32_t kind;
	uint32_t value; /* CHAR: the character; SET: index; STAR: least number of characters */
};

struct range {
	uint32_t first, last;
};

struct set {
	uint32_t range_begin, range_end;
	uint32_t negated;
};

enum { COMPONENT_LITERAL, COMPONENT_AFFIX, COMPONENT_GLOB, COMPONENT_DEEP };

struct component {
	uint8_t kind;
	uint8_t starts_wild; /* no leading dot */
	uint16_t name_len_min;
	uint32_t token_begin, token_end;
	uint32_t wildcard_begin, wildcard_end;
	uint32_t head_len, tail_len;
	const char *head, *tail; /* LITERAL: all of it, with a NUL, is the head; AFFIX: both */
};

struct wildcard {
	const char *name; /* NULL: unnamed */
	uint32_t token_begin, token_end;
	uint32_t is_deep;
};

#define US_PATTERN_NONE UINT32_MAX
/* Tokens of a component that can match a file name: at most one STAR that may be
 * empty beside each token that takes a byte. */
#define US_PATTERN_TOKENS_MAX (2 * US_PATTERN_FILE_NAME_LEN_MAX + 1)

struct us_pattern {
	char prefix[US_PATTERN_LEN_MAX + 1];
	size_t base_len; /* of the prefix, 0 for "/" */
	struct component components[US_PATTERN_COMPONENTS_MAX];
	struct wildcard wildcards[US_PATTERN_CAPTURES_MAX];
	uint32_t component_count, wildcard_count;
	uint32_t deep; /* index of the DEEP component or NONE */
	uint32_t token_count, range_count, set_count;
	/* Each at most as long as the pattern's text. */
	struct token *tokens;
	struct range *ranges;
	struct set *sets;
	char *strings; /* names and literal text, each with a NUL: at most three times as long */
	size_t strings_len;
};

#endif
