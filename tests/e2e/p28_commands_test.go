package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"
)

// inspected is a fleet in a bucket: some databases gone from the disk, some never
// backed up, some objects that are nobody's.
type inspected struct {
	t           *testing.T
	s           *s3server
	root        string
	paths       []string // all of them
	gone, never map[string]bool
	c           settings
	config      string
	state       string
	foreign     []string
}

func newInspected(t *testing.T, n int) *inspected {
	t.Helper()
	f := &inspected{t: t, s: startS3(t), root: filepath.Join(t.TempDir(), "data"), gone: map[string]bool{}, never: map[string]bool{}, state: t.TempDir()}
	f.paths = makeFleet(t, f.root, n)
	f.c = settings{pattern: seedPattern(f.root), target: f.s.target(f.s.url()), keys: []string{"state_dir: " + f.state, "snapshot_window: 0s"}}
	f.config = f.c.write(t, 0)
	for _, p := range f.paths[n-2:] {
		f.never[p] = true
		must(t, os.Rename(p, p+".later"))
	}
	once(t, f.c)
	for _, p := range f.paths[:n-2] {
		change(t, p)
	}
	once(t, f.c)
	for _, p := range f.paths[n-2:] {
		must(t, os.Rename(p+".later", p))
	}
	for _, p := range f.paths[:3] {
		f.gone[p] = true
		must(t, os.Remove(p))
	}
	f.foreign = []string{"readme.txt", keyOf(f.root, f.paths[5]) + "/notes.txt", "a/b/20200101T000000Z.db.lz4"}
	for _, k := range f.foreign {
		f.s.put(k, []byte("somebody else's"))
	}
	return f
}

func (f *inspected) newest(p string) os.FileInfo {
	f.t.Helper()
	objs := objects(f.t, f.s.dir(), keyOf(f.root, p))
	return must1[os.FileInfo](f.t)(os.Stat(objs[len(objs)-1]))
}

// text runs a command without -json.
func text(t testing.TB, config, verb string, args ...string) result {
	t.Helper()
	return litestream(t, append([]string{"multi-db", verb, "-config", config}, args...))
}

func TestCommandsList(t *testing.T) {
	t.Parallel()
	f := newInspected(t, 30)
	before := photo(t, f.root)
	mark := f.s.mark()
	a := multiDB(t, f.config, "list").good(t)
	if ops := f.s.operations(mark); len(ops) != 1 || ops["ListObjectsV2"] != 1 {
		t.Errorf("list: the server counts %v", ops)
	}
	if len(a.rows) != 30 {
		t.Fatalf("%d rows, want 30: %+v", len(a.rows), a.rows)
	}
	var bytes int64
	var order []string
	for _, r := range a.rows {
		if want := "age_seconds backups bytes error key newest path size status"; r.fields != want {
			t.Fatalf("fields %s, want %s", r.fields, want)
		}
		order = append(order, r.Key)
		bytes += r.Bytes
		want := "ok"
		switch {
		case f.gone[r.Path]:
			want = "gone"
		case f.never[r.Path]:
			want = "never"
			if r.Backups != 0 || r.Bytes != 0 || r.Newest != nil {
				t.Errorf("%+v", r)
			}
		}
		if r.Status != want || r.Key != keyOf(f.root, r.Path) && want != "never" {
			t.Errorf("%+v, want %s", r, want)
		}
		if want == "never" {
			continue
		}
		info := f.newest(r.Path)
		if r.Backups != 2 || r.Newest == nil || r.Size != info.Size() || r.AgeSeconds == nil || *r.AgeSeconds < 0 || *r.AgeSeconds > 300 {
			t.Errorf("%+v, newest object %s of %d bytes", r, info.Name(), info.Size())
		} else if at, err := time.Parse("2006-01-02T15:04:05Z", *r.Newest); err != nil || objectAt(at) != info.Name() {
			t.Errorf("newest %s: %v, want %s", *r.Newest, err, info.Name())
		}
	}
	if !slices.IsSortedFunc(a.rows, func(x, y row) int { return strings.Compare(keyOf(f.root, x.Path)+"/", keyOf(f.root, y.Path)+"/") }) {
		t.Errorf("not in the order of keys: %q", order)
	}
	if n, size := countObjects(t, f.s.dir()); a.num("databases") != 30 || a.num("ok") != 25 || a.num("gone") != 3 || a.num("never") != 2 || a.num("backups") != 56 ||
		int64(a.num("bytes")) != bytes || a.num("foreign_objects") != 3 || n != 57 || size < bytes {
		t.Errorf("summary %v; rows have %d bytes; %d objects", a.summary, bytes, n)
	}
	r := text(t, f.config, "list")
	ls := strings.Split(strings.TrimSpace(r.stdout), "\n")
	if r.code != 0 || strings.Join(strings.Fields(ls[0]), " ") != "STATUS DATABASE NEWEST AGE SIZE BACKUPS" || strings.Count(r.stdout, "STATUS") != 1 {
		t.Errorf("list: exit %d\n%s", r.code, r.all())
	}
	for _, p := range f.paths {
		if strings.Count(r.stdout, p) != 1 {
			t.Errorf("list: %q is there %d times", p, strings.Count(r.stdout, p))
		}
	}
	a = multiDB(t, f.config, "list", "-match", f.root+"/p1/*").good(t)
	for _, r := range a.rows {
		if !strings.HasPrefix(r.Path, f.root+"/p1/") {
			t.Errorf("-match: %q", r.Path)
		}
	}
	if len(a.rows) == 0 {
		t.Error("-match: nothing")
	}
	if a := multiDB(t, f.config, "list", "-match", "/nowhere/*"); a.code != 1 {
		t.Errorf("list of nothing: exit %d", a.code)
	}
	samePhoto(t, before, photo(t, f.root), nil)
}

func TestCommandsBackups(t *testing.T) {
	t.Parallel()
	f := newInspected(t, 10)
	for _, p := range []string{f.paths[0], f.paths[5]} {
		a := multiDB(t, f.config, "backups", p).good(t)
		objs := objects(t, f.s.dir(), keyOf(f.root, p))
		if len(a.rows) != 2 || len(objs) != 2 {
			t.Fatalf("%+v of %v", a.rows, objs)
		}
		var size int64
		for i, r := range a.rows {
			if want := "database_size error key mode size snapshot_time status time"; r.fields != want {
				t.Errorf("fields %s, want %s", r.fields, want)
			}
			b := must1[[]byte](t)(os.ReadFile(objs[i]))
			_, tr, err := decodeObject(b)
			must(t, err)
			at := must1[time.Time](t)(parseObject(filepath.Base(objs[i])))
			size += int64(len(b))
			if r.Status != "ok" || r.Key != strings.TrimPrefix(objs[i], f.s.dir()+"/") || r.Size != int64(len(b)) || r.DatabaseSize != tr.DatabaseSize || r.Mode != tr.Mode ||
				r.Time == nil || *r.Time != at.Format("2006-01-02T15:04:05Z") || r.SnapshotTime == nil {
				t.Errorf("%+v of %+v", r, tr)
				continue
			}
			snap, err := time.Parse(time.RFC3339Nano, *r.SnapshotTime)
			if want := must1[time.Time](t)(time.Parse(time.RFC3339Nano, tr.SnapshotTime)); err != nil || !snap.Equal(want) {
				t.Errorf("snapshot_time %s, want %s", *r.SnapshotTime, tr.SnapshotTime)
			}
		}
		if a.num("backups") != 2 || int64(a.num("bytes")) != size || a.num("failed") != 0 {
			t.Errorf("summary %v", a.summary)
		}
		r := text(t, f.config, "backups", p)
		header := strings.Join(strings.Fields(strings.SplitN(r.stdout, "\n", 2)[0]), " ")
		if r.code != 0 || header != "TIME SNAPSHOT SIZE DATABASE-SIZE KEY" || strings.Count(r.stdout, ".db.lz4") != 2 {
			t.Errorf("backups: exit %d\n%s", r.code, r.all())
		}
	}
	for _, p := range []string{f.paths[9], f.root + "/nothing", f.root + "/p0/databases/d0/branches/main/tenants/new.db"} {
		if a := multiDB(t, f.config, "backups", p); a.code != 1 || a.stderr == "" {
			t.Errorf("backups %s: exit %d", p, a.code)
		}
	}
	for _, args := range [][]string{{}, {f.paths[0], f.paths[1]}} {
		if a := multiDB(t, f.config, "backups", args...); a.code != 1 || a.stderr == "" {
			t.Errorf("backups %v: exit %d", args, a.code)
		}
	}
}

func TestCommandsStatus(t *testing.T) {
	t.Parallel()
	f := newInspected(t, 20)
	var st struct {
		Databases, Synced, Changed, Never int
		TargetDatabases                   int     `json:"target_databases"`
		TargetBackups                     int     `json:"target_backups"`
		TargetBytes                       int64   `json:"target_bytes"`
		TargetNewest                      *string `json:"target_newest"`
		Gone                              int
		NotInTarget                       int     `json:"not_in_target"`
		TargetError                       *string `json:"target_error"`
	}
	change(t, f.paths[7])
	r := text(t, f.config, "status", "-json")
	if err := json.Unmarshal([]byte(r.stdout), &st); err != nil || r.code != 1 { // some are not backed up
		t.Fatalf("exit %d, %v\n%s", r.code, err, r.all())
	}
	if st.Databases != 17 || st.Synced != 14 || st.Changed != 1 || st.Never != 2 || st.TargetDatabases != 18 || st.TargetBackups != 36 || st.Gone != 3 || st.NotInTarget != 2 ||
		st.TargetBytes <= 0 || st.TargetNewest == nil || st.TargetError != nil && *st.TargetError != "" {
		t.Errorf("%+v\n%s", st, r.stdout)
	}
	r = text(t, f.config, "status")
	if r.code != 1 || !strings.Contains(strings.ToLower(r.stdout), "target") {
		t.Errorf("exit %d\n%s", r.code, r.all())
	}
	f.s.kill()
	r = text(t, f.config, "status", "-json")
	if err := json.Unmarshal([]byte(r.stdout), &st); err != nil || r.code != 1 || st.Databases != 17 || st.Synced != 14 || st.TargetError == nil || *st.TargetError == "" {
		t.Errorf("without the target: exit %d, %v, %+v\n%s", r.code, err, st, r.all())
	}
	for _, verb := range []string{"list", "verify", "restore"} {
		start := time.Now()
		if a := multiDB(t, f.config, verb); a.code != 1 || a.stderr == "" || time.Since(start) > 30*time.Second {
			t.Errorf("%s without the target: exit %d after %v\n%s", verb, a.code, time.Since(start), a.stderr)
		}
	}
}

func TestCommandsVerify(t *testing.T) {
	t.Parallel()
	f := newInspected(t, 150)
	verify := func(args ...string) answer { t.Helper(); return multiDB(t, f.config, "verify", args...) }
	d := replicate(t, settings{pattern: f.c.pattern, target: f.c.target, keys: f.c.keys, interval: "1s"})
	d.waitSynced(30 * time.Second) // those of "never" are backed up now
	last := func() (v *struct {
		Time      string
		Databases int
		Failed    int
		Error     string
	}) {
		t.Helper()
		m := map[string]json.RawMessage{}
		must(t, d.json("/stats", &m))
		if m["last_verify"] == nil {
			t.Fatal("/stats has no last_verify")
		}
		must(t, json.Unmarshal(m["last_verify"], &v))
		return v
	}
	if v := last(); v != nil {
		t.Errorf("last_verify before the first: %+v", v)
	}
	mark := f.s.mark()
	a := verify().good(t)
	if a.num("databases") != 100 || a.num("verified") != 100 || a.num("failed") != 0 || len(a.rows) != 100 || f.s.operations(mark)["GetObject"] != 100 {
		t.Errorf("-sample 100: %v, %d rows, the server counts %v", a.summary, len(a.rows), f.s.operations(mark))
	}
	sample := fmt.Sprint(a.by("ok"))
	if again := verify().good(t); fmt.Sprint(again.by("ok")) == sample {
		t.Error("the same sample again")
	}
	for _, r := range a.rows {
		if want := "database_size error key path size snapshot_time status"; r.fields != want {
			t.Fatalf("fields %s, want %s", r.fields, want)
		}
	}
	a = verify("-all").good(t)
	if a.num("databases") != 150 || a.num("verified") != 150 || a.num("local_databases") != 147 || a.num("get") != 150 {
		t.Errorf("-all: %v", a.summary)
	}
	if a := verify("-sample", "7").good(t); a.num("verified") != 7 {
		t.Errorf("-sample 7: %v", a.summary)
	}
	if a := verify("-all", "-match", "*/p1/*").good(t); a.num("verified") != 38 && a.num("verified") != 37 {
		t.Errorf("-match: %v", a.summary)
	}
	waitFor(t, 5*time.Second, "last_verify", func() bool { return last() != nil })
	if v := last(); v.Databases == 0 || v.Failed != 0 || v.Error != "" {
		t.Errorf("last_verify %+v", v)
	} else if at, err := time.Parse(time.RFC3339Nano, v.Time); err != nil || time.Since(at) > time.Minute {
		t.Errorf("last_verify at %s", v.Time)
	}
	if info := must1[os.FileInfo](t)(os.Stat(filepath.Join(f.state, "last-verify.json"))); info.Mode() != 0o600 {
		t.Errorf("last-verify.json has mode %v", info.Mode())
	}
	d.stop()

	failed := func(what string, a answer, want ...string) {
		t.Helper()
		if a.code != 1 || fmt.Sprint(a.by("failed")) != fmt.Sprint(want) || a.num("failed") != len(want) || a.stderr == "" {
			t.Errorf("%s: exit %d, %v, failed %q, want %q\n%s", what, a.code, a.summary, a.by("failed"), want, a.stderr)
		}
	}
	newestOf := func(p string) string {
		objs := objects(t, f.s.dir(), keyOf(f.root, p))
		return objs[len(objs)-1]
	}
	// A flipped byte.
	p := f.paths[20]
	obj := newestOf(p)
	good := must1[[]byte](t)(os.ReadFile(obj))
	bad := slices.Clone(good)
	bad[len(bad)/3] ^= 4
	must(t, os.WriteFile(obj, bad, 0o644))
	failed("a flipped byte", verify("-all"), p)
	r := text(t, f.config, "verify", "-all")
	if r.code != 1 || !strings.Contains(r.all(), "failed "+p+":") {
		t.Errorf("a flipped byte: exit %d\n%s", r.code, r.all())
	}
	must(t, os.WriteFile(obj, good, 0o644))
	// The newest is missing; the one before it is good. The state file knows better.
	p = f.paths[30]
	obj = newestOf(p)
	must(t, os.Rename(obj, filepath.Join(f.state, "aside")))
	failed("the newest is missing", verify("-all"), p)
	must(t, os.Rename(filepath.Join(f.state, "aside"), obj))
	// All of one are missing.
	p = f.paths[40]
	must(t, os.Rename(filepath.Join(f.s.dir(), keyOf(f.root, p)), filepath.Join(f.state, "aside")))
	failed("all are missing", verify("-all"), p)
	must(t, os.Rename(filepath.Join(f.state, "aside"), filepath.Join(f.s.dir(), keyOf(f.root, p))))
	verify("-all").good(t)
	// Another good object in the place of the newest.
	p = f.paths[50]
	obj = newestOf(p)
	good = must1[[]byte](t)(os.ReadFile(obj))
	at := must1[time.Time](t)(parseObject(filepath.Base(obj)))
	must(t, os.WriteFile(obj, forge(p, smallImage(t, "another"), at), 0o644))
	failed("another content", verify("-all"), p)
	must(t, os.WriteFile(obj, good, 0o644))

	// An empty target, and a pattern that matches nothing.
	empty := startS3(t)
	c := f.c
	c.target = empty.target(empty.url())
	for _, args := range [][]string{nil, {"-all"}} {
		if a := multiDB(t, c.write(t, 0), "verify", args...); a.code != 1 {
			t.Errorf("verify %v of an empty target: exit %d\n%s", args, a.code, a.all())
		}
	}
	must(t, os.Rename(f.root, f.root+".aside"))
	must(t, os.Mkdir(f.root, 0o755))
	if a := verify("-all"); a.code != 1 {
		t.Errorf("verify without a database on disk: exit %d\n%s", a.code, a.all())
	}
	for _, args := range [][]string{{"-sample", "0"}, {"-sample", "x"}, {"-sample", "3", "-all"}, {"extra"}, {"-match", "/nowhere"}} {
		if r := text(t, f.config, "verify", args...); r.code != 1 || r.stderr == "" {
			t.Errorf("verify %v: exit %d\n%s", args, r.code, r.all())
		}
	}
}

func TestCommandsPurge(t *testing.T) {
	t.Parallel()
	f := newInspected(t, 40)
	before := allKeys(t, f.s.dir())
	untouched := func(what string) {
		t.Helper()
		if now := allKeys(t, f.s.dir()); len(now) != len(before) {
			t.Fatalf("%s: %d objects of %d are left", what, len(now), len(before))
		}
	}
	run := func(args ...string) answer { t.Helper(); return multiDB(t, f.config, "purge", args...) }

	// Without a number nothing goes; the number is named.
	a := run(f.paths[10])
	if want := "backups bytes key newest path"; a.code != 1 || len(a.rows) != 1 || a.rows[0].fields != want || a.rows[0].Path != f.paths[10] || a.rows[0].Backups != 2 ||
		a.num("databases") != 1 || a.num("backups") != 2 || a.num("deleted") != 0 || a.summary["confirmed"] != false {
		t.Errorf("purge PATH: exit %d, %+v, %v", a.code, a.rows, a.summary)
	}
	r := text(t, f.config, "purge", f.paths[10])
	if last := lastLine(r.all()); r.code != 1 || !strings.Contains(r.all(), "would delete 2 backups of 1 database") || !strings.Contains(r.all(), "-confirm 2") || last == "" {
		t.Errorf("purge PATH: exit %d\n%s", r.code, r.all())
	}
	untouched("without -confirm")
	r = text(t, f.config, "purge", "-confirm", "3", f.paths[10])
	if r.code != 1 || !strings.Contains(r.all(), "3") || !strings.Contains(r.all(), "2") {
		t.Errorf("a wrong number: exit %d\n%s", r.code, r.all())
	}
	untouched("a wrong number")
	for _, args := range [][]string{
		{}, {"-confirm", "2"}, {"-gone"}, {"-older-than", "1h"}, {"-gone", "-older-than", "soon"}, {"-gone", "-older-than", "-5h"}, {"-confirm", "x", f.paths[10]}, {"-confirm", "0", f.paths[10]},
		{f.paths[10], f.paths[11]}, {"-match", "*", f.paths[10]}, {"-gone", "-older-than", "1h", f.paths[10]}, {f.root + "/nowhere.db"}, {f.root + "/p0/databases/d/branches/b/tenants/none.db"},
		{"-match", "/nowhere/*"}, {"-confirm", fmt.Sprint(76), "-match", f.root + "/*"}, {"-match", f.root + "/*"}, {"-confirm", "76", "-match", "?*"},
	} {
		if r := text(t, f.config, "purge", args...); r.code != 1 || r.stderr == "" {
			t.Errorf("purge %v: exit %d\n%s", args, r.code, r.all())
		}
	}
	untouched("refusals")

	// A directory that cannot be listed: nobody can tell what is gone.
	if os.Geteuid() == 0 {
		dir := filepath.Dir(f.paths[12])
		must(t, os.Chmod(f.root, 0o755))
		must(t, os.Chmod(dir, 0o700))
		for _, args := range [][]string{{"-gone", "-older-than", "0s"}, {"-match", f.root + "/p1/*"}} {
			r := litestream(t, verbArgs(nobodysConfig(t, f), "purge", args...), asNobody())
			if r.code != 1 || r.stderr == "" {
				t.Errorf("purge %v with a directory that cannot be listed: exit %d\n%s", args, r.code, r.all())
			}
		}
		must(t, os.Chmod(dir, 0o755))
		untouched("a directory that cannot be listed")
	}

	// One database.
	disk := photo(t, f.root)
	mark := f.s.mark()
	a = run("-confirm", "2", f.paths[10]).good(t)
	if ops := f.s.operations(mark); a.num("deleted") != 2 || a.summary["confirmed"] != true || ops["DeleteObjects"] != 1 {
		t.Errorf("%v; the server counts %v", a.summary, ops)
	}
	left := func(want ...string) {
		t.Helper()
		now := allKeys(t, f.s.dir())
		var removed []string
		for k := range before {
			if !now[k] {
				removed = append(removed, filepath.Dir(k))
			}
		}
		sort.Strings(removed)
		removed = slices.Compact(removed)
		sort.Strings(want)
		if fmt.Sprint(removed) != fmt.Sprint(want) {
			t.Errorf("removed %q, want %q", removed, want)
		}
		before = now
	}
	left(keyOf(f.root, f.paths[10]))
	// Those that are gone, and only if their newest is old enough.
	if a := run("-gone", "-older-than", "90d"); a.code != 1 || len(a.rows) != 0 {
		t.Errorf("-gone -older-than 90d: exit %d, %+v", a.code, a.rows)
	}
	time.Sleep(1100 * time.Millisecond) // names have seconds
	a = run("-gone", "-older-than", "1s", "-confirm", "6").good(t)
	if a.num("databases") != 3 || a.num("deleted") != 6 {
		t.Errorf("-gone: %v", a.summary)
	}
	var want []string
	for p := range f.gone {
		want = append(want, keyOf(f.root, p))
	}
	left(want...)
	// By a pattern.
	want = nil
	n := 0
	for i, p := range f.paths[3:38] {
		if strings.HasPrefix(p, f.root+"/p1/") && i+3 != 10 {
			want = append(want, keyOf(f.root, p))
			n += 2
		}
	}
	run("-match", f.root+"/p1/*", "-confirm", fmt.Sprint(n)).good(t)
	left(want...)
	// Everything, literally.
	a = run("-match", "*")
	all := a.num("backups")
	if a.code != 1 || all <= 0 {
		t.Fatalf("-match '*': exit %d, %v", a.code, a.summary)
	}
	run("-match", "*", "-confirm", fmt.Sprint(all)).good(t)
	now := allKeys(t, f.s.dir())
	for _, k := range f.foreign {
		if !now[k] {
			t.Errorf("%s, which is not ours, has gone", k)
		}
	}
	if len(now) != len(f.foreign) {
		t.Errorf("left: %v", now)
	}
	samePhoto(t, disk, photo(t, f.root), nil)
}

// nobodysConfig is a configuration that a user without rights can read; one directory
// of the fleet it cannot.
func nobodysConfig(t *testing.T, f *inspected) string {
	t.Helper()
	dir := openTemp(t)
	c := f.c
	c.keys = append(slices.Clone(f.c.keys), "allow_any_filesystem: true")
	p := filepath.Join(dir, "litestream.yml")
	must(t, os.WriteFile(p, []byte(c.text(0)), 0o644))
	for d := f.root; d != "/tmp" && d != "/"; d = filepath.Dir(d) { // others may walk to the fleet
		must(t, os.Chmod(d, 0o755))
	}
	return p
}

func lastLine(s string) string {
	l := strings.Split(strings.TrimSpace(s), "\n")
	return l[len(l)-1]
}

// A list of a hundred thousand objects: its first rows are there long before the
// listing has ended; memory does not grow with it.
func TestCommandsListStreams(t *testing.T) {
	t.Parallel()
	s := startFakeS3(t)
	const total = 100
	at := time.Date(2026, 3, 3, 10, 0, 0, 0, time.UTC)
	held := make(chan struct{})
	s.list = func(w http.ResponseWriter, r *http.Request, n int64) bool {
		if n == 20 { // until the first row is there
			select {
			case <-held:
			case <-r.Context().Done():
				return true
			case <-time.After(20 * time.Second):
			}
		}
		var keys []string
		for i := range 1000 {
			keys = append(keys, fmt.Sprintf("p%06d/d/m/t/%s", (int(n)-1)*1000+i, objectAt(at)))
		}
		token := fmt.Sprint("token", n)
		if n >= total {
			token = ""
		}
		writeXML(w, page(keys, func(string) int { return 4000 }, token))
		return true
	}
	root := filepath.Join(t.TempDir(), "data")
	simple(t, root+"/p000000/databases/d/branches/m/tenants/t.db")
	config := (settings{pattern: seedPattern(root), target: s.target(seedTemplate), keys: []string{"memory_limit: 16MB"}}).write(t, 0)
	for _, asJSON := range []bool{true, false} {
		args := []string{"multi-db", "list", "-config", config}
		if asJSON {
			args = append(args, "-json")
		}
		s.lists.Store(0)
		held = make(chan struct{})
		start := time.Now()
		cmd, out, stderr := lines(t, args)
		n, gone := 0, 0
		for out.Scan() {
			if n == 1 {
				if at := s.lists.Load(); at > 20 {
					t.Errorf("the second line came after %d of %d pages", at, total)
				}
				close(held)
			}
			if strings.Contains(out.Text(), "gone") {
				gone++
			}
			n++
		}
		if n <= 1 {
			close(held)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %v\n%s", args, err, tail(stderr.String(), 1000))
		}
		if gone < total*1000-1 || s.lists.Load() != total {
			t.Errorf("%v: %d lines, %d of them gone, %d LISTs", args, n, gone, s.lists.Load())
		}
		t.Logf("%v: %d lines in %v", args[1:2], n, time.Since(start))
	}
	_, peak := measured(t, time.Minute, verbArgs(config, "list"), nil)
	if peak > 200<<20 {
		t.Errorf("peak memory %d MB", peak>>20)
	}
	// Whoever reads the list goes away.
	s.lists.Store(0)
	cmd, out, _ := lines(t, verbArgs(config, "list"))
	out.Scan()
	must(t, cmd.Process.Signal(os.Interrupt))
	ended := make(chan error, 1)
	go func() {
		for out.Scan() {
		}
		ended <- cmd.Wait()
	}()
	select {
	case err := <-ended:
		if err == nil && s.lists.Load() < total {
			t.Errorf("exit 0 after SIGINT and %d of %d pages", s.lists.Load(), total)
		}
	case <-time.After(10 * time.Second):
		t.Error("still there 10 s after SIGINT")
	}
}
