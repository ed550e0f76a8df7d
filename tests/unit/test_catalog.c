/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/base/clock.h"
#include "../../csrc/restore/catalog.h"
#include "../../csrc/restore/hosts.h"
#include "../../csrc/restore/local.h"

/* A store that lists KEYS, in the byte order that stores promise. */
static const char *keys[8192];
static size_t key_count;
static const char *empty_name; /* objects of this name are empty */
static size_t fail_after;      /* keys; 0: no failure */

static int by_bytes(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int32_t fake_list(struct us_store *store, const char *prefix, us_store_list_fn *fn,
			 void *arg, struct us_error *err)
{
	(void)store;
	qsort(keys, key_count, sizeof(keys[0]), by_bytes);
	for (size_t i = 0; i < key_count; i++) {
		if (strncmp(keys[i], prefix, strlen(prefix)) == 0) {
			if (fail_after && i == fail_after) {
				return us_fail(err, US_E_NETWORK, "the line is dead");
			}
			int is_empty = empty_name && strstr(keys[i], empty_name) != NULL;
			int32_t rc = fn(arg, keys[i], strlen(keys[i]), is_empty ? 0 : 10 + i);
			if (rc) {
				return rc;
			}
		}
	}
	return 0;
}

static uint32_t list_count;

static int32_t fake_list_after(struct us_store *store, const char *prefix, const char *after,
			       us_store_list_fn *fn, void *arg, struct us_error *err)
{
	(void)store;
	(void)err;
	list_count++;
	for (size_t i = 0; i < key_count; i++) {
		if (strcmp(keys[i], after) > 0 && strncmp(keys[i], prefix, strlen(prefix)) == 0) {
			int32_t rc = fn(arg, keys[i], strlen(keys[i]), 1);
			if (rc) {
				return rc;
			}
		}
	}
	return 0;
}

static const struct us_store_ops fake_ops = { .list = fake_list, .list_after = fake_list_after };
static struct us_store fake = { .ops = &fake_ops };

static struct us_pattern *pattern;
static struct us_template *tmpl;

static void open_template(const char *pattern_text, const char *template_text)
{
	struct us_error err = US_ERROR_INIT;
	assert_int_equal(us_pattern_new(pattern_text, &pattern, &err), 0);
	assert_int_equal(us_template_new(template_text, pattern, NULL, &tmpl, &err), 0);
}

static void close_template(void)
{
	us_template_free(tmpl);
	us_pattern_free(pattern);
}

/* What the catalog calls, a line each. */
static char trace[8192];

static int32_t on_database(void *arg, const struct us_catalog_entry *e)
{
	char line[400], newest[17];
	(void)arg;
	us_time_name_format(e->newest.time_s, newest);
	(void)snprintf(line, sizeof(line), "%s %s %llu %s\n", e->key, e->path,
		       (unsigned long long)e->object_count, newest);
	strncat(trace, line, sizeof(trace) - strlen(trace) - 1);
	return 0;
}

static int32_t on_surplus(void *arg, const char *key, const struct us_backup *backup)
{
	char line[400], time[17];
	(void)arg;
	us_time_name_format(backup->time_s, time);
	assert_non_null(strstr(key, time));
	(void)snprintf(line, sizeof(line), "surplus %s\n", key);
	strncat(trace, line, sizeof(trace) - strlen(trace) - 1);
	return 0;
}

static struct us_catalog_result result;

static int32_t run(const char *only)
{
	struct us_error err = US_ERROR_INIT;
	const struct us_catalog_fns fns = { .database = on_database, .surplus = on_surplus };
	trace[0] = '\0';
	return us_catalog_run(&fake, tmpl, only, 0, UINT32_MAX, &fns, NULL, &result, &err);
}

static void test_groups_by_database(void **state)
{
	(void)state;
	open_template("/data/*/*.db", "b/{{org}}/{{name}}");
	key_count = 0;
	keys[key_count++] = "b/acme/x/20260101T000000Z.db.lz4";
	keys[key_count++] = "b/acme/x/20260102T000000Z.db.lz4";
	keys[key_count++] = "b/acme/x/20260103T000000Z.db.lz4";
	keys[key_count++] = "b/acme/x-1/20260104T000000Z.db.lz4";
	keys[key_count++] = "b/acme/x.1/20260105T000000Z.db.lz4";
	keys[key_count++] = "b/acme/x/20260105T000000Z.db.lz4x"; /* none of ours: */
	keys[key_count++] = "b/acme/x/notes.txt";
	keys[key_count++] = "b/acme/20260105T000000Z.db.lz4";
	keys[key_count++] = "b/acme/x/y/20260105T000000Z.db.lz4";
	keys[key_count++] = "b/acme/x/20260231T000000Z.db.lz4";
	keys[key_count++] = "b/acme/x/19700101T000000Z.db.lz4";
	keys[key_count++] = "b/acme/../20260105T000000Z.db.lz4";
	keys[key_count++] = "b//x/20260105T000000Z.db.lz4";
	keys[key_count++] = "b/acme/%2Ex/20260105T000000Z.db.lz4"; /* another spelling of none */
	assert_int_equal(run(NULL), 0);
	assert_string_equal(trace, "b/acme/x-1 /data/acme/x-1.db 1 20260104T000000Z\n"
				   "b/acme/x.1 /data/acme/x.1.db 1 20260105T000000Z\n"
				   "surplus b/acme/x/20260101T000000Z.db.lz4\n"
				   "b/acme/x /data/acme/x.db 3 "
				   "20260103T000000Z\n");
	assert_int_equal(result.ours_count, 5);
	assert_int_equal(result.database_count, 3);
	assert_int_equal(result.foreign_count, 9);
	uint32_t newest;
	assert_int_equal(us_time_name_parse("20260105T000000Z", 16, &newest), 0);
	assert_int_equal(result.newest_s, newest);
	close_template();
}

/* With `**` a database's key can lie below another's. */
static void test_databases_below_databases(void **state)
{
	(void)state;
	open_template("/data/**/*.db", "{{dir}}/{{name}}");
	key_count = 0;
	keys[key_count++] = "a/20260101T000000Z.db.lz4";
	keys[key_count++] = "a/20260101T0/20260105T000000Z.db.lz4";
	keys[key_count++] = "a/20260101T0/z/20260106T000000Z.db.lz4";
	keys[key_count++] = "a/20260102T000000Z.db.lz4";
	keys[key_count++] = "a/20260102T000001/20260107T000000Z.db.lz4";
	keys[key_count++] = "a/20260103T000000Z.db.lz4";
	keys[key_count++] = "a/b/20260108T000000Z.db.lz4";
	keys[key_count++] = "a.c/20260109T000000Z.db.lz4";
	assert_int_equal(run(NULL), 0);
	assert_string_equal(trace, "a.c /data/a.c.db 1 20260109T000000Z\n"
				   "a/20260101T0/z /data/a/20260101T0/z.db 1 20260106T000000Z\n"
				   "a/20260101T0 /data/a/20260101T0.db 1 20260105T000000Z\n"
				   "a/20260102T000001 /data/a/20260102T000001.db 1 "
				   "20260107T000000Z\n"
				   "surplus a/20260101T000000Z.db.lz4\n"
				   "a/b /data/a/b.db 1 20260108T000000Z\n"
				   "a /data/a.db 3 20260103T000000Z\n");
	/* The order in which they came is that of us_key_compare. */
	const char *before = NULL;
	static char copy[8192];
	memcpy(copy, trace, sizeof(copy));
	for (char *line = copy, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
		*end = '\0';
		if (strncmp(line, "surplus", 7) == 0) {
			continue;
		}
		*strchr(line, ' ') = '\0';
		assert_true(!before || us_key_compare(before, line) < 0);
		assert_true(!before || us_key_compare(line, before) > 0);
		before = line;
	}
	assert_int_equal(us_key_compare("a", "a"), 0);
	/* One database, and what lies below it. */
	assert_int_equal(run("a/20260101T0"), 0);
	assert_int_equal(result.database_count, 2);
	close_template();
}

static int32_t stop_at_once(void *arg, const struct us_catalog_entry *e)
{
	(void)arg;
	(void)e;
	return US_E_EXISTS;
}

static struct us_catalog_entry last_entry;

static int32_t keep_entry(void *arg, const struct us_catalog_entry *e)
{
	(void)arg;
	last_entry = *e;
	return 0;
}

static uint32_t time_of(const char *name)
{
	uint32_t time_s;
	assert_int_equal(us_time_name_parse(name, 16, &time_s), 0);
	return time_s;
}

static void test_timestamp(void **state)
{
	(void)state;
	struct us_error err = US_ERROR_INIT;
	const struct us_catalog_fns fns = { .database = keep_entry };
	open_template("/data/*.db", "{{name}}");
	key_count = 0;
	keys[key_count++] = "x/20260101T000000Z.db.lz4";
	keys[key_count++] = "x/20260102T000000Z.db.lz4";
	keys[key_count++] = "x/20260103T000000Z.db.lz4";
	keys[key_count++] = "x/20260104T000000Z.db.lz4";
	static const struct {
		const char *at;
		int64_t plus_ns;
		const char *before2, *before, *after;
	} cases[] = {
		{ "20251231T235959Z", 999999999, "", "", "20260101T000000Z" },
		{ "20260101T000000Z", 0, "", "20260101T000000Z", "20260102T000000Z" },
		{ "20260103T000000Z", 1, "20260102T000000Z", "20260103T000000Z",
		  "20260104T000000Z" },
		{ "20260102T235959Z", 999999999, "20260101T000000Z", "20260102T000000Z",
		  "20260103T000000Z" },
		{ "20270101T000000Z", 0, "20260103T000000Z", "20260104T000000Z", "" },
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int64_t at_ns = time_of(cases[i].at) * US_NS_PER_S + cases[i].plus_ns;
		assert_int_equal(us_catalog_run(&fake, tmpl, NULL, at_ns, UINT32_MAX, &fns, NULL,
						&result, &err),
				 0);
#define IS(field, name) assert_int_equal(last_entry.field.time_s, (name)[0] ? time_of(name) : 0)
		IS(before2, cases[i].before2);
		IS(before, cases[i].before);
		IS(after, cases[i].after);
#undef IS
	}
	close_template();
}

/* What is empty is no backup: it does not make a good one superfluous. */
static void test_empty_objects(void **state)
{
	(void)state;
	open_template("/data/*.db", "{{name}}");
	key_count = 0;
	keys[key_count++] = "x/20260101T000000Z.db.lz4";
	keys[key_count++] = "x/20260102T000000Z.db.lz4";
	keys[key_count++] = "x/20260103T000007Z.db.lz4";
	keys[key_count++] = "x/20260104T000007Z.db.lz4";
	keys[key_count++] = "x/20260105T000000Z.db.lz4";
	empty_name = "T000007Z";
	assert_int_equal(run(NULL), 0);
	assert_string_equal(trace, "surplus x/20260101T000000Z.db.lz4\n"
				   "x /data/x.db 5 20260105T000000Z\n");
	key_count--;
	assert_int_equal(run(NULL), 0);
	assert_string_equal(trace, "x /data/x.db 4 20260104T000007Z\n");
	empty_name = NULL;
	close_template();
}

/* A listing that breaks off is gone on with, where that was asked for. */
static void test_patience(void **state)
{
	(void)state;
	struct us_error err = US_ERROR_INIT;
	open_template("/data/*.db", "{{name}}");
	key_count = 0;
	keys[key_count++] = "x/20260101T000000Z.db.lz4";
	keys[key_count++] = "x/20260102T000000Z.db.lz4";
	keys[key_count++] = "x/20260103T000000Z.db.lz4";
	keys[key_count++] = "y/20260101T000000Z.db.lz4";
	fail_after = 2;
	assert_int_equal(run(NULL), US_E_NETWORK);
	const struct us_catalog_fns fns = { .database = on_database, .is_patient = 1 };
	trace[0] = '\0';
	list_count = 0;
	assert_int_equal(
		us_catalog_run(&fake, tmpl, NULL, 0, UINT32_MAX, &fns, NULL, &result, &err), 0);
	assert_string_equal(trace, "x /data/x.db 3 20260103T000000Z\n"
				   "y /data/y.db 1 20260101T000000Z\n");
	assert_int_equal(list_count, 1);
	assert_int_equal(result.ours_count, 4);
	fail_after = 0;
	close_template();
}

static void test_stops(void **state)
{
	(void)state;
	struct us_error err = US_ERROR_INIT;
	const struct us_catalog_fns fns = { .database = stop_at_once };
	_Atomic uint32_t cancel = 1;
	open_template("/data/*.db", "{{name}}");
	key_count = 0;
	keys[key_count++] = "x/20260101T000000Z.db.lz4";
	assert_int_equal(
		us_catalog_run(&fake, tmpl, NULL, 0, UINT32_MAX, &fns, NULL, &result, &err),
		US_E_EXISTS);
	assert_int_equal(
		us_catalog_run(&fake, tmpl, NULL, 0, UINT32_MAX, &fns, &cancel, &result, &err),
		US_E_CANCELED);
	/* A name that is too far ahead is no newest name. */
	const struct us_catalog_fns keeping = { .database = keep_entry };
	assert_int_equal(us_catalog_run(&fake, tmpl, NULL, 0, time_of("20251231T000000Z"), &keeping,
					NULL, &result, &err),
			 0);
	assert_int_equal(result.newest_s, 0);
	assert_int_equal(result.ours_count, 1);
	close_template();
}

static void expect_hosts(const char *template_text, const char *wanted)
{
	struct us_error err = US_ERROR_INIT;
	static struct us_hosts hosts;
	char found[1000] = "";
	list_count = 0;
	assert_int_equal(us_pattern_new("/data/*/*.db", &pattern, &err), 0);
	assert_int_equal(us_hosts_find(&fake, pattern, template_text, NULL, &hosts, &err), 0);
	for (size_t i = 0; i < hosts.count; i++) {
		size_t len = strlen(found);
		(void)snprintf(found + len, sizeof(found) - len, "%s ", hosts.names[i]);
	}
	assert_string_equal(found, wanted);
	us_pattern_free(pattern);
}

static void test_hosts(void **state)
{
	(void)state;
	key_count = 0;
	keys[key_count++] = "b/alpha/o/x/20260101T000000Z.db.lz4";
	keys[key_count++] = "b/beta/o/x/20260101T000000Z.db.lz4";
	keys[key_count++] = "b/beta/o/x/20260102T000000Z.db.lz4";
	keys[key_count++] = "b/gam.ma%01/o/x/20260102T000000Z.db.lz4";
	keys[key_count++] = "b/nobody/o/x/readme";
	keys[key_count++] = "b/nobody/20260102T000000Z.db.lz4";
	keys[key_count++] = "c/delta/o/x/20260102T000000Z.db.lz4";
	expect_hosts("b/{{hostname}}/{{org}}/{{name}}", "alpha beta gam.ma\x01 ");
	assert_int_equal(list_count, 0);
	expect_hosts("b/{{org}}/{{name}}", "");
	key_count = 0;
	keys[key_count++] = "o/host-a.example/x/20260102T000000Z.db.lz4";
	keys[key_count++] = "o/host-b.example/x/20260102T000000Z.db.lz4";
	keys[key_count++] = "p/host-a.example/x/20260102T000000Z.db.lz4";
	expect_hosts("{{org}}/host-{{hostname}}.example/{{name}}", "a b ");
	/* One with very many objects costs one request more. */
	static char many[3000][64];
	for (int i = 0; i < 3000; i++) {
		(void)snprintf(many[i], sizeof(many[0]), "h1/o/x%04d/20260102T000000Z.db.lz4", i);
		keys[i] = many[i];
	}
	key_count = 3000;
	keys[key_count++] = "h2/o/x/20260102T000000Z.db.lz4";
	expect_hosts("{{hostname}}/{{org}}/{{name}}", "h1 h2 ");
	assert_int_equal(list_count, 1);
}

/* Keys that have no host where the template has it. */
static void test_no_hosts(void **state)
{
	(void)state;
	static char long_key[600];
	char name[300];
	key_count = 0;
	keys[key_count++] = "readme";
	keys[key_count++] = "a/20260102T000000Z.db.lz4"; /* not so deep */
	keys[key_count++] = "o/20260102T000000Z.db.lz4/20260102T000000Z.db.lz4";
	keys[key_count++] = "o/host-.example/x/20260102T000000Z.db.lz4"; /* no name */
	keys[key_count++] = "o/host-a.elsewhere/x/20260102T000000Z.db.lz4";
	keys[key_count++] = "o/nost-a.example/x/20260102T000000Z.db.lz4";
	keys[key_count++] = "o/host-%zz.example/x/20260102T000000Z.db.lz4"; /* no escape */
	keys[key_count++] = "o/host-%00.example/x/20260102T000000Z.db.lz4";
	keys[key_count++] = "o/host-%2F.example/x/20260102T000000Z.db.lz4"; /* no name of a host */
	keys[key_count++] =
		"o/host-b%41.example/x/20260102T000000Z.db.lz4";           /* not as we write it */
	keys[key_count++] = "o/host-a.example/.x/20260102T000000Z.db.lz4"; /* no path of ours */
	memset(name, 'h', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	(void)snprintf(long_key, sizeof(long_key), "o/host-%s.example/x/20260102T000000Z.db.lz4",
		       name);
	keys[key_count++] = long_key;
	expect_hosts("{{org}}/host-{{hostname}}.example/{{name}}", "");
	/* Beside a variable nobody can tell where the name begins, or ends. */
	key_count = 0;
	keys[key_count++] = "a-b-c/x/20260102T000000Z.db.lz4";
	keys[key_count++] = "b-/x/20260102T000000Z.db.lz4";
	keys[key_count++] = "-b/x/20260102T000000Z.db.lz4";
	expect_hosts("{{org}}-{{hostname}}/{{name}}", "");
	expect_hosts("{{hostname}}-{{org}}/{{name}}", "");
}

/* No more than there is room for, and no more requests than are reasonable. */
static void test_many_hosts(void **state)
{
	(void)state;
	static char many[150][64];
	static struct us_hosts hosts;
	struct us_error err = US_ERROR_INIT;
	_Atomic uint32_t cancel = 1;
	for (int i = 0; i < 150; i++) {
		(void)snprintf(many[i], sizeof(many[0]), "h%03d/o/x/20260102T000000Z.db.lz4", i);
		keys[i] = many[i];
	}
	key_count = 150;
	assert_int_equal(us_pattern_new("/data/*/*.db", &pattern, &err), 0);
	assert_int_equal(
		us_hosts_find(&fake, pattern, "{{hostname}}/{{org}}/{{name}}", NULL, &hosts, &err),
		0);
	assert_int_equal(hosts.count, US_HOSTS_MAX);
	assert_string_equal(hosts.names[US_HOSTS_MAX - 1], "h099");
	assert_int_equal(us_hosts_find(&fake, pattern, "{{hostname}}/{{org}}/{{name}}", &cancel,
				       &hosts, &err),
			 US_E_CANCELED);
	fail_after = 1;
	assert_int_equal(
		us_hosts_find(&fake, pattern, "{{hostname}}/{{org}}/{{name}}", NULL, &hosts, &err),
		US_E_NETWORK);
	fail_after = 0;
	us_pattern_free(pattern);
}

/* What is the key of an object, and what only looks like one. */
static void test_object_keys(void **state)
{
	(void)state;
	static const struct {
		const char *key;
		int is;
	} table[] = {
		{ "x/20260102T030405Z.db.lz4", 1 }, { "a/b/20260102T030405Z.db.lz4", 1 },
		{ "/20260102T030405Z.db.lz4", 0 },  { "20260102T030405Z.db.lz4", 0 },
		{ "x/20260102T030405Z.db.lz", 0 },  { "x/20260102T030405Z.db.lz44", 0 },
		{ "xx20260102T030405Z.db.lz4", 0 }, { "x/20261302T030405Z.db.lz4", 0 },
		{ "x/20260102T030405Z.db.gz4", 0 }, { "x/20260102T030405z.db.lz4", 0 },
	};
	size_t prefix_len;
	uint32_t time_s;
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		const char *key = table[i].key;
		if (us_object_key_parse(key, strlen(key), &prefix_len, &time_s) != table[i].is) {
			fail_msg("%s", key);
		}
	}
	char *long_key = calloc(1, US_KEY_LEN_MAX + 100);
	memset(long_key, 'k', US_KEY_LEN_MAX + 50);
	memcpy(long_key + US_KEY_LEN_MAX - US_OBJECT_NAME_LEN - 1, "/20260102T030405Z.db.lz4", 25);
	assert_int_equal(us_object_key_parse(long_key, US_KEY_LEN_MAX, &prefix_len, &time_s), 1);
	memmove(long_key + 1, long_key, US_KEY_LEN_MAX);
	assert_int_equal(us_object_key_parse(long_key, US_KEY_LEN_MAX + 1, &prefix_len, &time_s),
			 0);
	free(long_key);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_groups_by_database),
		cmocka_unit_test(test_databases_below_databases),
		cmocka_unit_test(test_timestamp),
		cmocka_unit_test(test_empty_objects),
		cmocka_unit_test(test_patience),
		cmocka_unit_test(test_stops),
		cmocka_unit_test(test_hosts),
		cmocka_unit_test(test_no_hosts),
		cmocka_unit_test(test_many_hosts),
		cmocka_unit_test(test_object_keys),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
