package multidb

import (
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var (
	testTime     = time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)
	testSnapshot = time.Date(2026, 1, 2, 15, 4, 5, 123456789, time.UTC)
)

func okRow(name string) row {
	return row{status: rowOK, path: "/data/" + name + ".db", output: "/out/" + name + ".db", key: name + "/20260102T150000Z.db.lz4",
		objectSize: 500, time: testTime, snapshotTime: testSnapshot, databaseSize: 8192, mode: 0o640, pageSize: 4096}
}

func failedRow(name, message string) row {
	return row{status: rowFailed, code: ErrObject, path: "/data/" + name + ".db", output: "/out/" + name + ".db",
		key: name + "/20260102T150000Z.db.lz4", objectSize: 500, time: testTime, message: message}
}

func listed(status rowStatus, name string, objects uint64) row {
	r := row{status: status, path: "/data/" + name + ".db", key: name, objects: objects, objectsSize: objects * 500}
	if objects > 0 {
		r.objectSize, r.time = 500, testTime
	}
	return r
}

// lines compares output with what is wanted, line by line.
func lines(t *testing.T, got string, want ...string) {
	t.Helper()
	if gotLines := strings.Split(strings.TrimSuffix(got, "\n"), "\n"); !slices.Equal(gotLines, want) {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("err=%v", err)
	case want != "" && (err == nil || err.Error() != want):
		t.Errorf("err=%v, want %s", err, want)
	}
}

func TestList(t *testing.T) {
	bad := listed(rowNever, "bad", 0)
	bad.key, bad.message = "", "too long"
	f := &fakeFleet{task: fakeTask{
		rows: []row{listed(rowOK, "a", 3), listed(rowGone, "b<&", 1), listed(rowNever, "c", 0), bad},
		p:    progress{ours: 4, foreign: 7},
	}}
	out, _, err := runOn(t, fileConfig(), f, "list", "-match", "/data/*")
	wantError(t, err, "")
	outLines := strings.Split(out, "\n")
	if age := strings.Split(outLines[1], "\t")[3]; !strings.HasSuffix(age, "d") {
		t.Errorf("age %q", age)
	}
	age := strings.Split(outLines[1], "\t")[3]
	lines(t, out, "STATUS\tDATABASE\tNEWEST\tAGE\tSIZE\tBACKUPS",
		"ok\t/data/a.db\t2026-01-02T15:00:00Z\t"+age+"\t500 B\t3",
		"gone\t/data/b<&.db\t2026-01-02T15:00:00Z\t"+age+"\t500 B\t1",
		"never\t/data/c.db\t-\t-\t-\t0",
		"never\t/data/bad.db\t-\t-\t-\t0\t(too long)")
	if f.opts[0] != (taskOptions{kind: taskList, match: "/data/*"}) {
		t.Errorf("task %+v", f.opts[0])
	}

	f = &fakeFleet{task: f.task}
	f.task.rows = []row{listed(rowGone, "b<&", 1), bad}
	f.task.rows[0].time = time.Now().Add(time.Hour) // never negative
	out, _, err = runOn(t, fileConfig(), f, "list", "-json")
	wantError(t, err, "")
	lines(t, out,
		`{"status":"gone","path":"/data/b<&.db","key":"b<&","newest":"`+f.task.rows[0].time.UTC().Format(time.RFC3339)+
			`","age_seconds":0,"size":500,"backups":1,"bytes":500,"error":""}`,
		`{"status":"never","path":"/data/bad.db","key":"","newest":null,"age_seconds":null,"size":0,"backups":0,"bytes":0,"error":"too long"}`,
		`{"summary":{"databases":2,"ok":0,"gone":1,"never":1,"backups":1,"bytes":500,"foreign_objects":7}}`)
}

func TestList_Faults(t *testing.T) {
	withHost := fileConfig()
	withHost.Hostname = "one"
	withHost.File.Path = "{{hostname}}/{{tenant}}"
	ours := []row{listed(rowOK, "a", 1)}
	never := []row{listed(rowNever, "a", 0)}
	for _, tt := range []struct {
		cfg  *Config
		f    fakeFleet
		args []string
		want string
	}{
		{fileConfig(), fakeFleet{}, nil, `no backup in the target matches "{{tenant}}"`},
		{fileConfig(), fakeFleet{}, []string{"-match", "*x"}, `no backup in the target matches "*x"`},
		{fileConfig(), fakeFleet{task: fakeTask{rows: ours, p: progress{ours: 1, walkFailures: 2}}}, nil,
			"2 directories or files could not be looked at"},
		{fileConfig(), fakeFleet{task: fakeTask{rows: []row{ours[0], failedRow("b", "x")}, p: progress{ours: 1}}}, nil,
			"1 of 2 databases could not be looked at"},
		{fileConfig(), fakeFleet{task: fakeTask{rows: ours, err: &Error{Code: ErrHTTP, Message: "403"}}}, nil, "403"},
		{fileConfig(), fakeFleet{startErr: errTest}, nil, "marker"},
		{withHost, fakeFleet{task: fakeTask{rows: never}}, nil, ""},
		{withHost, fakeFleet{present: []string{"two", "three"}, task: fakeTask{rows: never}}, nil,
			`no backups of host "one" in the target; hosts present: two, three (-host NAME)`},
		{withHost, fakeFleet{present: []string{"two"}}, []string{"-host", "three"},
			`no backups of host "three" in the target; hosts present: two (-host NAME)`},
		{withHost, fakeFleet{present: []string{"one", "two"}}, []string{"-match", "*x"},
			`no backup in the target matches "*x" (of host "one"; hosts present: one, two)`},
		{withHost, fakeFleet{hostsErr: errTest}, nil,
			`no backup in the target matches "{{hostname}}/{{tenant}}" (of host "one"; -host NAME looks for those of another)`},
		{withHost, fakeFleet{}, nil, `no backup in the target matches "{{hostname}}/{{tenant}}"`},
		{fileConfig(), fakeFleet{}, []string{"-host", "x"}, "-host x: the path of multi_db has no {{hostname}}"},
		{fileConfig(), fakeFleet{}, []string{"/data/a.db"}, "too many arguments"},
	} {
		out, _, err := runOn(t, tt.cfg, &tt.f, append([]string{"list", "-json"}, tt.args...)...)
		wantError(t, err, tt.want)
		// The summary says that the output is complete.
		if complete := strings.Contains(out, `"summary"`); complete != (len(tt.f.opts) > 0 && tt.f.task.err == nil && tt.f.startErr == nil) {
			t.Errorf("%s: output %s", tt.want, out)
		}
	}
}

func TestBackups(t *testing.T) {
	f := &fakeFleet{task: fakeTask{rows: []row{okRow("a"), failedRow("a", "no intact trailer")}}}
	out, _, err := runOn(t, fileConfig(), f, "backups", "/data/../data/a.db", "-config", "/other.yml")
	wantError(t, err, "1 of 2 backups are damaged")
	lines(t, out, "TIME\tSNAPSHOT\tSIZE\tDATABASE-SIZE\tKEY",
		"2026-01-02T15:00:00Z\t2026-01-02T15:04:05.123456789Z\t500 B\t8.2 kB\ta/20260102T150000Z.db.lz4",
		"2026-01-02T15:00:00Z\t-\t500 B\t-\ta/20260102T150000Z.db.lz4\tfailed: no intact trailer")
	if f.opts[0] != (taskOptions{kind: taskBackups, path: "/data/a.db"}) {
		t.Errorf("task %+v", f.opts[0])
	}

	f = &fakeFleet{task: f.task}
	out, _, err = runOn(t, fileConfig(), f, "backups", "-json", "/data/a.db")
	wantError(t, err, "1 of 2 backups are damaged")
	lines(t, out,
		`{"status":"ok","key":"a/20260102T150000Z.db.lz4","time":"2026-01-02T15:00:00Z","snapshot_time":"2026-01-02T15:04:05.123456789Z",`+
			`"size":500,"database_size":8192,"mode":"0640","error":""}`,
		`{"status":"failed","key":"a/20260102T150000Z.db.lz4","time":"2026-01-02T15:00:00Z","snapshot_time":null,`+
			`"size":500,"database_size":0,"mode":"","error":"no intact trailer"}`,
		`{"summary":{"backups":2,"bytes":1000,"failed":1}}`)

	_, _, err = runOn(t, fileConfig(), &fakeFleet{}, "backups", "/data/a.db")
	wantError(t, err, `no backup in the target matches "/data/a.db"`)
	_, _, err = runOn(t, fileConfig(), &fakeFleet{}, "backups")
	wantError(t, err, "database path required")
	_, _, err = runOn(t, fileConfig(), &fakeFleet{}, "backups", "")
	wantError(t, err, "the path of the database is empty")
	_, _, err = runOn(t, fileConfig(), &fakeFleet{}, "backups", "/data/a.db", "/data/b.db")
	wantError(t, err, "too many arguments")
}

func s3FakeConfig() *Config {
	cfg := fileConfig()
	cfg.File = nil
	cfg.S3 = &S3Config{Bucket: "b", Path: "{{tenant}}", MaxConcurrentUploads: 100}
	return cfg
}

func TestRestoreFleet(t *testing.T) {
	skipped := okRow("c")
	skipped.status, skipped.snapshotTime, skipped.databaseSize = rowSkipped, time.Time{}, 0
	fellBack := okRow("d")
	fellBack.message = "backup x is damaged"
	f := &fakeFleet{task: fakeTask{
		rows: []row{okRow("a"), failedRow("b", "it exists"), skipped, fellBack},
		p:    progress{total: 4, done: 4, calls: apiCalls{get: 5, list: 1}},
	}}
	out, errOut, err := runOn(t, s3FakeConfig(), f, "restore", "-match", "*", "-output-dir", "/out/", "-force", "-fallback",
		"-if-db-not-exists", "-integrity-check", "quick", "-timestamp", "2026-01-02T16:04:05+01:00")
	wantError(t, err, "1 of 4 databases could not be restored")
	lines(t, out, "restored 2 of 4 databases (1 skipped, 1 failed), 16 kB from 1.0 kB of objects in 0.0 s; 5 GET, 1 LIST = $0.000007")
	lines(t, errOut, "failed /data/b.db: it exists", "fell back /data/d.db: backup x is damaged")
	opt := f.opts[0]
	if !opt.timestamp.Equal(time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)) {
		t.Errorf("timestamp %v", opt.timestamp)
	}
	opt.timestamp = time.Time{}
	if opt != (taskOptions{kind: taskRestore, match: "*", outputDir: "/out", force: true, fallback: true, ifNotExists: true,
		integrity: integrityQuick}) {
		t.Errorf("task %+v", opt)
	}

	f = &fakeFleet{task: f.task}
	out, errOut, err = runOn(t, s3FakeConfig(), f, "restore", "-json")
	wantError(t, err, "1 of 4 databases could not be restored")
	rowOf := func(name, status, snapshot, size, mode, message string) string {
		return `{"path":"/data/` + name + `.db","output":"/out/` + name + `.db","status":"` + status + `","key":"` + name +
			`/20260102T150000Z.db.lz4","time":"2026-01-02T15:00:00Z","snapshot_time":` + snapshot +
			`,"size":500,"database_size":` + size + `,"mode":"` + mode + `","error":"` + message + `"}`
	}
	at := `"2026-01-02T15:04:05.123456789Z"`
	summary := out[strings.LastIndex(strings.TrimSuffix(out, "\n"), "\n")+1:]
	lines(t, strings.TrimSuffix(out, summary),
		rowOf("a", "restored", at, "8192", "0640", ""),
		rowOf("b", "failed", "null", "0", "", "it exists"),
		rowOf("c", "skipped", "null", "0", "", ""),
		rowOf("d", "restored", at, "8192", "0640", "backup x is damaged"))
	if !strings.HasPrefix(summary, `{"summary":{"databases":4,"restored":2,"skipped":1,"failed":1,"object_bytes":1000,"database_bytes":16384,"seconds":`) ||
		!strings.HasSuffix(summary, `,"get":5,"list":1,"cost_usd":0.000007}}`+"\n") {
		t.Errorf("summary %s", summary)
	}
	if errOut != "" {
		t.Errorf("stderr %s", errOut)
	}
}

func TestRestoreFleet_DryRun(t *testing.T) {
	unread := okRow("a")
	unread.snapshotTime, unread.databaseSize, unread.mode, unread.objects = time.Time{}, 0, 0, 1
	f := &fakeFleet{task: fakeTask{rows: []row{unread, failedRow("b", "it exists")}, p: progress{calls: apiCalls{list: 3}}}}
	out, errOut, err := runOn(t, s3FakeConfig(), f, "restore", "-dry-run")
	wantError(t, err, "1 of 2 databases could not be restored")
	lines(t, out, "/data/a.db -> /out/a.db, 500 B",
		"would restore 1 of 2 databases (0 skipped, 1 failed), 500 B of objects; 1 GET, 3 LIST = $0.000015")
	lines(t, errOut, "failed /data/b.db: it exists")

	f = &fakeFleet{task: f.task}
	f.task.rows = f.task.rows[:1]
	out, _, err = runOn(t, fileConfig(), f, "restore", "-dry-run", "-json")
	wantError(t, err, "")
	for _, want := range []string{`"status":"would-restore"`, `"snapshot_time":null,"size":500,"database_size":0,"mode":""`,
		`{"summary":{"databases":1,"restored":0,"skipped":0,"failed":0,"object_bytes":500,"database_bytes":0,"seconds":`,
		`"get":1,"list":3,"cost_usd":0}}`} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in %s", want, out)
		}
	}
}

func TestRestoreFleet_Faults(t *testing.T) {
	for _, tt := range []struct {
		f    fakeFleet
		args []string
		want string
	}{
		{fakeFleet{}, []string{"-match", "*x"}, `no backup in the target matches "*x"`},
		{fakeFleet{task: fakeTask{p: progress{total: 9, done: 3, failed: 1}, err: &Error{Code: ErrCanceled}}}, nil,
			"canceled; 2 of 9 databases restored before"},
		{fakeFleet{}, []string{"-integrity-check", "some"}, "invalid -integrity-check value: some"},
		{fakeFleet{}, []string{"-timestamp", "yesterday"}, "invalid -timestamp, must specify in ISO 8601 format (e.g. 2000-01-01T00:00:00Z)"},
		{fakeFleet{}, []string{"-timestamp", "0001-01-01T00:00:00Z"}, "invalid -timestamp 0001-01-01T00:00:00Z: no backup can be as old"},
		{fakeFleet{}, []string{"-parallelism", "1001"}, `invalid value "1001" for flag -parallelism: must be a number from 1 to 1000`},
		{fakeFleet{}, []string{"-parallelism", "0"}, `invalid value "0" for flag -parallelism: must be a number from 1 to 1000`},
		{fakeFleet{}, []string{"/data/a.db"}, "too many arguments"},
	} {
		_, _, err := runOn(t, fileConfig(), &tt.f, append([]string{"restore"}, tt.args...)...)
		wantError(t, err, tt.want)
	}

	// The number goes to the handle, and nowhere else.
	for _, cfg := range []*Config{fileConfig(), s3FakeConfig()} {
		uploads := func(c *Config) int {
			if c.S3 != nil {
				return c.S3.MaxConcurrentUploads
			}
			return c.File.MaxConcurrentUploads
		}
		before := uploads(cfg)
		e := newTestEnv(t, cfg, func(opened *Config) (fleet, error) {
			if uploads(opened) != 7 {
				t.Errorf("opened with %d", uploads(opened))
			}
			return nil, errTest
		}, io.Discard, io.Discard)
		if err := e.run(t.Context(), []string{"restore", "-parallelism", "7"}); !errors.Is(err, errTest) || uploads(cfg) != before {
			t.Errorf("err=%v, %d", err, uploads(cfg))
		}
	}
}

func TestVerify(t *testing.T) {
	dir := t.TempDir()
	cfg := s3FakeConfig()
	cfg.StateDir = dir
	f := &fakeFleet{task: fakeTask{
		rows: []row{okRow("a"), failedRow("b", "SHA-256 differs")},
		p:    progress{local: 30, calls: apiCalls{get: 2, list: 1}},
	}}
	out, _, err := runOn(t, cfg, f, "verify")
	wantError(t, err, "1 of 2 databases failed")
	lines(t, out, "failed /data/b.db: SHA-256 differs",
		"verified 1 of 2 databases (1 failed; 30 on disk), 8.2 kB from 500 B of objects in 0.0 s; 2 GET, 1 LIST = $0.000006")
	if f.opts[0] != (taskOptions{kind: taskVerify, sampleCount: 100, integrity: integrityFull}) {
		t.Errorf("task %+v", f.opts[0])
	}
	r := lastVerifyReader{path: filepath.Join(dir, lastVerifyFile)}
	if v := r.read(); v == nil || v.Databases != 2 || v.Failed != 1 || v.Error != "1 of 2 databases failed" || time.Since(v.at()) > time.Minute {
		t.Errorf("recorded %+v", v)
	}

	f = &fakeFleet{task: f.task}
	out, _, err = runOn(t, cfg, f, "verify", "-all", "-json", "-match", "*", "-integrity-check", "none")
	wantError(t, err, "1 of 2 databases failed")
	outLines := strings.Split(out, "\n")
	lines(t, strings.Join(outLines[:2], "\n"),
		`{"path":"/data/a.db","status":"ok","key":"a/20260102T150000Z.db.lz4","snapshot_time":"2026-01-02T15:04:05.123456789Z","size":500,"database_size":8192,"error":""}`,
		`{"path":"/data/b.db","status":"failed","key":"b/20260102T150000Z.db.lz4","snapshot_time":null,"size":500,"database_size":0,"error":"SHA-256 differs"}`)
	if !strings.HasPrefix(outLines[2], `{"summary":{"databases":2,"verified":1,"failed":1,"object_bytes":500,"database_bytes":8192,"seconds":`) ||
		!strings.HasSuffix(outLines[2], `,"get":2,"list":1,"cost_usd":0.0000058,"local_databases":30}}`) {
		t.Errorf("summary %s", outLines[2])
	}
	if f.opts[0] != (taskOptions{kind: taskVerify, match: "*"}) {
		t.Errorf("task %+v", f.opts[0])
	}

	for _, tt := range []struct {
		f    fakeFleet
		args []string
		want string
	}{
		{fakeFleet{}, nil, `no backup in the target matches "{{tenant}}"`},
		{fakeFleet{task: fakeTask{rows: []row{okRow("a")}}}, nil, `no database matches discovery_pattern "/data/*.db"`},
		{fakeFleet{task: fakeTask{rows: []row{okRow("a")}, p: progress{local: 1, walkFailures: 1}}}, nil, "1 directory or file could not be looked at"},
		{fakeFleet{task: fakeTask{rows: []row{okRow("a")}, p: progress{local: 1}}}, []string{"-sample", "5"}, ""},
		{fakeFleet{}, []string{"-sample", "0"}, "invalid -sample value: 0; use 1 or more, or -all"},
		{fakeFleet{}, []string{"-sample", "5", "-all"}, "cannot use -all with -sample"},
		{fakeFleet{}, []string{"-integrity-check", "some"}, "invalid -integrity-check value: some"},
	} {
		_, _, err := runOn(t, cfg, &tt.f, append([]string{"verify"}, tt.args...)...)
		wantError(t, err, tt.want)
		if v := r.read(); len(tt.f.opts) > 0 && (v == nil || v.Error != tt.want) {
			t.Errorf("%s: recorded %+v", tt.want, v)
		}
	}
}

// The disk of this host says nothing about what is gone on another.
func TestPurge_GoneOnAnotherHost(t *testing.T) {
	cfg := fileConfig()
	cfg.Hostname = "one"
	f := &fakeFleet{}
	_, _, err := runOn(t, cfg, f, "purge", "-host", "two", "-gone", "-older-than", "90d", "-confirm", "1")
	wantError(t, err, "cannot use -gone with -host: what is gone on another host cannot be seen from here")
	if len(f.opts) > 0 {
		t.Errorf("started %+v", f.opts)
	}
}

// What is found of another host says nothing about this one's backups.
func TestVerify_OtherHost(t *testing.T) {
	cfg := fileConfig()
	cfg.StateDir, cfg.Hostname = t.TempDir(), "one"
	f := &fakeFleet{task: fakeTask{rows: []row{okRow("a")}, p: progress{local: 1}}}
	_, _, err := runOn(t, cfg, f, "verify", "-host", "two")
	wantError(t, err, "")
	if entries, err := os.ReadDir(cfg.StateDir); err != nil || len(entries) > 0 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestPurge(t *testing.T) {
	rows := []row{listed(rowOK, "a", 2), listed(rowOK, "b", 1)}
	f := &fakeFleet{task: fakeTask{rows: rows, p: progress{objects: 3}}}
	out, _, err := runOn(t, fileConfig(), f, "purge", "-match", "/data/*")
	wantError(t, err, "nothing deleted")
	lines(t, out, "DATABASE\tBACKUPS\tSIZE\tNEWEST", "/data/a.db\t2\t1.0 kB\t2026-01-02T15:00:00Z", "/data/b.db\t1\t500 B\t2026-01-02T15:00:00Z",
		"would delete 3 backups of 2 databases; to do it, repeat with -confirm 3")
	if f.opts[0] != (taskOptions{kind: taskPurge, match: "/data/*"}) {
		t.Errorf("task %+v", f.opts[0])
	}

	f = &fakeFleet{task: f.task}
	out, _, err = runOn(t, fileConfig(), f, "purge", "-match", "/data/*", "-confirm", "2")
	wantError(t, err, "nothing deleted: -confirm 2 was given, and it would be 3 backups of 2 databases")
	if strings.Contains(out, "delete") || f.opts[0].confirmCount != 2 {
		t.Errorf("%+v: %s", f.opts[0], out)
	}

	f = &fakeFleet{task: fakeTask{rows: rows, p: progress{objects: 3, removed: 3, confirmed: true}}}
	out, _, err = runOn(t, fileConfig(), f, "purge", "-gone", "-older-than", "90d", "-confirm", "3")
	wantError(t, err, "")
	if !strings.HasSuffix(out, "\ndeleted 3 backups of 2 databases\n") {
		t.Errorf("%s", out)
	}
	opt := f.opts[0]
	if age := time.Since(opt.olderThan) - 90*24*time.Hour; age < 0 || age > time.Minute || !opt.gone || opt.confirmCount != 3 {
		t.Errorf("task %+v", opt)
	}

	f = &fakeFleet{task: f.task}
	out, errOut, err := runOn(t, fileConfig(), f, "purge", "-json", "-confirm", "3", "/data/a.db")
	wantError(t, err, "")
	lines(t, out,
		`{"path":"/data/a.db","key":"a","backups":2,"bytes":1000,"newest":"2026-01-02T15:00:00Z"}`,
		`{"path":"/data/b.db","key":"b","backups":1,"bytes":500,"newest":"2026-01-02T15:00:00Z"}`,
		`{"summary":{"databases":2,"backups":3,"bytes":1500,"deleted":3,"confirmed":true}}`)
	if f.opts[0] != (taskOptions{kind: taskPurge, path: "/data/a.db", confirmCount: 3}) || errOut != "" {
		t.Errorf("task %+v; %s", f.opts[0], errOut)
	}

	failed := listed(rowFailed, "a", 2)
	failed.message = "403"
	f = &fakeFleet{task: fakeTask{rows: []row{failed, rows[1]}, p: progress{objects: 3, removed: 1, confirmed: true}}}
	out, errOut, err = runOn(t, fileConfig(), f, "purge", "-match", "*", "-confirm", "3")
	wantError(t, err, "1 of 2 databases could not be purged")
	lines(t, errOut, "failed /data/a.db: 403")
	if !strings.HasSuffix(out, "\ndeleted 1 backup of 2 databases\n") {
		t.Errorf("%s", out)
	}

	f = &fakeFleet{task: fakeTask{p: progress{objects: 3, removed: 1}, err: &Error{Code: ErrCanceled}}}
	_, _, err = runOn(t, fileConfig(), f, "purge", "-match", "*", "-confirm", "3")
	wantError(t, err, "canceled; 1 of 3 backups deleted before")
}

func TestPurge_Arguments(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{nil, "what to purge? Give the path of a database, -match, or -gone and -older-than"},
		{[]string{"-confirm", "3"}, "what to purge? Give the path of a database, -match, or -gone and -older-than"},
		{[]string{"-match", "*", "/data/a.db"}, "cannot use -match or -gone with a path"},
		{[]string{"/data/a.db", "-gone", "-older-than", "1h"}, "cannot use -match or -gone with a path"},
		{[]string{"-gone"}, "-gone needs -older-than, e.g. -older-than 90d"},
		{[]string{"-older-than", "1h"}, "-older-than needs -gone; retention deletes old backups of databases that are there"},
		{[]string{"-match", "*", "-older-than", "1h"}, "-older-than needs -gone; retention deletes old backups of databases that are there"},
		{[]string{"-gone", "-older-than", "-1h"}, `invalid value "-1h" for flag -older-than: must be a duration such as 90d or 12h`},
		{[]string{"-match", "*", "-confirm", "all"}, `invalid value "all" for flag -confirm: must be the number of backups that would be deleted`},
		{[]string{"-gone", "-older-than", "1d12h"}, "no database is gone with its newest backup older than 36h"},
		{[]string{"-match", "*x"}, `no backup in the target matches "*x"`},
		{[]string{"/data/a.db"}, `no backup in the target matches "/data/a.db"`},
		{[]string{"-match", "*", "-confirm", "0"}, `no backup in the target matches "*"`},
	} {
		_, _, err := runOn(t, fileConfig(), &fakeFleet{}, append([]string{"purge"}, tt.args...)...)
		wantError(t, err, tt.want)
	}
}

func TestParseDays(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"90d": 90 * 24 * time.Hour, "1d12h": 36 * time.Hour, "12h": 12 * time.Hour, "0d": 0, "106751d": 106751 * 24 * time.Hour,
	} {
		if got, err := parseDays(text); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "d", "90", "1.5d", "-1d", "1d-1h", "1d1d", "106752d", "106751d24h", "99999999999999999999d", "1h1d", "90 d"} {
		if got, err := parseDays(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestStatus_Target(t *testing.T) {
	cfg := fileConfig()
	f := &fakeFleet{
		planned: planResult{databases: 3, synced: 2, changed: 0, never: 0, stateFound: true, lastBackup: testTime},
		task:    fakeTask{rows: []row{listed(rowOK, "a", 3), listed(rowGone, "b", 1), listed(rowNever, "c", 0), listed(rowNever, "d", 0)}, p: progress{ours: 4}},
	}
	out, _, err := runOn(t, cfg, f, "status")
	// One of the three is no database by the state, so one other should be there.
	wantError(t, err, "1 database is backed up by the state, and not in the target")
	for _, want := range []string{"in target            2 databases (4 backups, 2.0 kB)\n", "newest in target     2026-01-02T15:00:00Z\n",
		"gone locally         1\n", "not in target        2\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}

	f.task = fakeTask{rows: f.task.rows[:1], err: &Error{Code: ErrHTTP, Message: "403"}}
	out, _, err = runOn(t, cfg, f, "status", "-json")
	wantError(t, err, "403")
	for _, want := range []string{`"synced": 2,`, `"target_databases": 0,`, `"target_newest": null,`, `"target_error": "403"`} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	if out, _, _ = runOn(t, cfg, f, "status"); !strings.Contains(out, "in target            unknown: 403\n") {
		t.Errorf("%s", out)
	}

	f.task = fakeTask{rows: []row{listed(rowNever, "c", 0)}}
	_, _, err = runOn(t, cfg, f, "status")
	wantError(t, err, `no backup in the target matches "{{tenant}}"`)
}

// Whoever reads the output may go away: head, for one.
func TestClosedPipe(t *testing.T) {
	for _, args := range [][]string{{"list"}, {"list", "-json"}, {"restore", "-dry-run"}, {"verify", "-json"}, {"plan"}, {"status", "-json"}} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		f := &fakeFleet{task: fakeTask{rows: []row{okRow("a"), okRow("b")}, p: progress{local: 1}}}
		err = newTestEnv(t, fileConfig(), func(*Config) (fleet, error) { return f, nil }, w, io.Discard).run(t.Context(), args)
		if !errors.Is(err, flag.ErrHelp) || !f.closed || f.open != 0 {
			t.Errorf("%v: %v, closed %v, %d tasks open", args, err, f.closed, f.open)
		}
		w.Close()
	}
	p := &pipe{Writer: failingWriter{&fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}}}
	if _, err := p.Write(nil); err == nil || p.closed {
		t.Errorf("a full disk passed for a closed pipe: %v", err)
	}
	err := newTestEnv(t, fileConfig(), func(*Config) (fleet, error) {
		return &fakeFleet{task: fakeTask{rows: []row{okRow("a")}, p: progress{local: 1}}}, nil
	}, failingWriter{syscall.ENOSPC}, io.Discard).run(t.Context(), []string{"list"})
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("err=%v", err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func TestUsage_Verbs(t *testing.T) {
	for _, c := range commands {
		out, _, err := runOn(t, nil, &fakeFleet{}, c.name, "-h")
		if !errors.Is(err, flag.ErrHelp) {
			t.Errorf("%s: %v", c.name, err)
		}
		// Every flag is described, and no other.
		fs := flag.NewFlagSet("", flag.ContinueOnError)
		c.setup(fs)
		want := []string{"config", "json", "no-expand-env"}
		fs.VisitAll(func(f *flag.Flag) { want = append(want, f.Name) })
		if c.readsTarget {
			want = append(want, "host")
		}
		var described []string
		for line := range strings.SplitSeq(out, "\n") {
			if name, ok := strings.CutPrefix(line, "\t-"); ok {
				name, _, _ = strings.Cut(name, " ")
				described = append(described, name)
			}
		}
		slices.Sort(want)
		slices.Sort(described)
		if !slices.Equal(want, described) {
			t.Errorf("%s: flags %v, described %v", c.name, want, described)
		}
		for line := range strings.SplitSeq(out, "\n") {
			if len(line) > 82 || strings.TrimRight(line, " ") != line {
				t.Errorf("%s: line %q", c.name, line)
			}
		}
	}
}
