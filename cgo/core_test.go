//go:build cgo && linux

package multidb

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	_ "modernc.org/sqlite"
)

// newFleet returns a configuration with n databases, of both kinds of journal
// modes, and the directory they are in.
func newFleet(t *testing.T, n int) (*Config, string) {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "data")
	for _, d := range []string{dir, filepath.Join(root, "backup")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		mode := "wal"
		if i%2 == 1 {
			mode = "delete"
		}
		execSQL(t, filepath.Join(dir, fmt.Sprintf("t%d.db", i)),
			"PRAGMA journal_mode="+mode, "CREATE TABLE t (x)", fmt.Sprintf("INSERT INTO t VALUES ('row of %d')", i))
	}
	return &Config{
		DiscoveryPattern: filepath.Join(dir, "{tenant}.db"),
		SyncInterval:     30 * time.Second,
		SnapshotWindow:   time.Hour,
		Format:           "lz4",
		MemoryLimit:      DefaultMemoryLimit,
		File:             &FileConfig{Directory: filepath.Join(root, "backup"), Path: "x/{{tenant}}", MaxConcurrentUploads: 4},
	}, dir
}

func execSQL(t *testing.T, path string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	for _, statement := range statements {
		if _, err := db.Exec(statement); err != nil {
			t.Fatalf("%s: %s: %v", path, statement, err)
		}
	}
}

func querySQL(t *testing.T, path, query string) (value string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow(query).Scan(&value); err != nil {
		t.Fatalf("%s: %s: %v", path, query, err)
	}
	return value
}

func mustOpen(t *testing.T, cfg *Config) *UltraSimpleReplicator {
	t.Helper()
	r, err := Open(context.Background(), cfg, Options{Version: "v0.5.18+test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustClose(t, r, 0) })
	return r
}

func mustClose(t *testing.T, r *UltraSimpleReplicator, timeout time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := r.Close(ctx, timeout); err != nil {
		t.Error(err)
	}
}

func mustOnce(t *testing.T, r *UltraSimpleReplicator) *snapshot {
	t.Helper()
	if err := r.Once(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r.snapshot.Load()
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for start := time.Now(); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > 20*time.Second {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// nextSecond waits for the second after the last upload: a second object of one
// database within the second that names the first waits for the next cycle.
func nextSecond() {
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(1010 * time.Millisecond)))
}

func TestCore_Once(t *testing.T) {
	logs := captureLog(t)
	cfg, dir := newFleet(t, 5)
	empty, text := filepath.Join(dir, "empty.db"), filepath.Join(dir, "text.db")
	for path, content := range map[string]string{empty: "", text: strings.Repeat("no database\n", 100)} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	r := mustOpen(t, cfg)
	s := mustOnce(t, r)
	if s.cycles != 1 || s.databases != 7 || s.uploadsSuccess != 5 || s.unsynced != 0 || s.bytesUploaded == 0 ||
		s.databasesEmpty != 1 || s.notDatabases != 1 || s.databasesFailed != 0 || s.calls.put < 5 || s.costUSDPerDay != 0 {
		t.Fatalf("after the first cycle: %+v", s)
	}
	if !strings.Contains(logs.String(), "file is not a database") || !strings.Contains(logs.String(), text) {
		t.Errorf("not in the log: %s", logs)
	}
	if !strings.Contains(logs.String(), "replicating databases") || !strings.Contains(logs.String(), "msg=cycle") {
		t.Errorf("not in the log: %s", logs)
	}

	nextSecond()
	execSQL(t, filepath.Join(dir, "t1.db"), "INSERT INTO t VALUES ('more')")
	if s = mustOnce(t, r); s.cycles != 2 || s.uploadsSuccess != 6 || s.changedLastCycle < 1 {
		t.Fatalf("after a change: %+v", s)
	}
	if s = mustOnce(t, r); s.uploadsSuccess != 6 {
		t.Fatalf("without a change: %+v", s)
	}
	mustClose(t, r, time.Minute)

	// A restart knows what the target has.
	r = mustOpen(t, cfg)
	if s = mustOnce(t, r); s.uploadsSuccess != 0 || s.databases != 7 || s.calls.put != 1 { // the owner object
		t.Fatalf("after a restart: %+v", s)
	}
}

// With a window of 0 each upload is named after its second; a change within it
// must not be left behind by a cycle that no other follows.
func TestCore_OnceTwiceInOneSecond(t *testing.T) {
	cfg, dir := newFleet(t, 2)
	cfg.SnapshotWindow = 0
	r := mustOpen(t, cfg)
	mustOnce(t, r)
	for i := range 3 {
		execSQL(t, filepath.Join(dir, "t0.db"), "INSERT INTO t VALUES ('more')")
		if s := mustOnce(t, r); s.unsynced != 0 || s.uploadsSuccess != uint64(3+i) {
			t.Fatalf("change %d: %+v", i, s)
		}
	}
}

func TestCore_Failure(t *testing.T) {
	logs := captureLog(t)
	cfg, dir := newFleet(t, 3)
	path := filepath.Join(dir, "t1.db")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, whole[:4096], 0o600); err != nil {
		t.Fatal(err)
	}

	r := mustOpen(t, cfg)
	for range 2 {
		err = r.Once(t.Context())
		if err == nil || !strings.Contains(err.Error(), "1 of 3 databases") || !strings.Contains(err.Error(), path) {
			t.Fatalf("err=%v", err)
		}
	}
	s := r.snapshot.Load()
	if s.databasesFailed != 1 || s.unsynced != 1 || s.uploadsSuccess != 2 || s.oldestUnsynced.IsZero() ||
		len(s.failures) != 1 || s.failures[0].path != path || s.failures[0].cycles != 2 || s.failures[0].stage == "" {
		t.Fatalf("stats: %+v", s)
	}
	if n := strings.Count(logs.String(), "database cannot be backed up"); n != 1 {
		t.Errorf("logged %d times, want 1: %s", n, logs)
	}

	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if s := mustOnce(t, r); s.databasesFailed != 0 || s.unsynced != 0 || len(s.failures) != 0 || s.uploadsSuccess != 3 {
		t.Fatalf("after the repair: %+v", s)
	}
	if n := strings.Count(logs.String(), "database is backed up again"); n != 1 {
		t.Errorf("recovery logged %d times, want 1: %s", n, logs)
	}
}

func TestCore_Loop(t *testing.T) {
	cfg, dir := newFleet(t, 3)
	cfg.SyncInterval = 30 * time.Millisecond
	r := mustOpen(t, cfg)
	r.RegisterHTTP()
	r.Start()
	eventually(t, "three cycles are over", func() bool { return r.snapshot.Load().cycles >= 3 })
	execSQL(t, filepath.Join(dir, "t0.db"), "INSERT INTO t VALUES ('more')")
	eventually(t, "the change is uploaded", func() bool { return r.snapshot.Load().uploadsSuccess == 4 })
	if got := decodeStats(t)["databases"]; got != 3.0 {
		t.Errorf("databases=%v", got)
	}
	if got := gatherMetrics(t)["databases"]; got != 3 {
		t.Errorf("metric=%v", got)
	}

	mustClose(t, r, 10*time.Second)
}

func TestCore_LastCycle(t *testing.T) {
	cfg, dir := newFleet(t, 3)
	r := mustOpen(t, cfg)
	r.Start()
	eventually(t, "one cycle is over", func() bool { return r.snapshot.Load().cycles == 1 })
	nextSecond()
	execSQL(t, filepath.Join(dir, "t0.db"), "INSERT INTO t VALUES ('last words')")
	mustClose(t, r, 10*time.Second)
	if s := r.snapshot.Load(); s.cycles != 2 || s.uploadsSuccess != 4 {
		t.Fatalf("after Close: %+v", s)
	}
	out := filepath.Join(t.TempDir(), "out.db")
	if err := restore(t.Context(), cfg, RestoreFlags{Path: filepath.Join(dir, "t0.db"), OutputPath: out}, io.Discard); err != nil {
		t.Fatal(err)
	}
	if got := querySQL(t, out, "SELECT max(x) FROM t WHERE x LIKE 'last%'"); got != "last words" {
		t.Fatalf("restored %q", got)
	}
}

func TestCore_Locked(t *testing.T) {
	cfg, _ := newFleet(t, 1)
	r := mustOpen(t, cfg)
	if _, err := Open(t.Context(), cfg, Options{Version: "v1"}); !errors.Is(err, ErrLocked) {
		t.Fatalf("a second Open: %v", err)
	}
	c, err := openCore(cfg, true)
	if err != nil {
		t.Fatalf("read-only: %v", err)
	}
	if _, err := c.cycle(); !errors.Is(err, ErrArgument) {
		t.Fatalf("a cycle on a read-only handle: %v", err)
	}
	c.close()
	c.close()
	if _, err := c.stats(); !errors.Is(err, errClosed) {
		t.Fatalf("after close: %v", err)
	}
	c.cancel()
	c.finish()
	mustClose(t, r, 0)
	mustClose(t, mustOpen(t, cfg), 0)
}

func TestCore_Errors(t *testing.T) {
	cfg, dir := newFleet(t, 1)
	absent := *cfg
	absent.DiscoveryPattern = filepath.Join(dir, "absent", "{tenant}.db")
	absent.StateDir = filepath.Join(filepath.Dir(dir), "state")
	if r, err := Open(t.Context(), &absent, Options{Version: "v1"}); err == nil {
		err = r.Once(t.Context())
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("absent prefix: %v", err)
		}
		if s := r.snapshot.Load(); s.cyclesFailed != 1 || s.cycleError == "" || s.cycles != 0 {
			t.Errorf("absent prefix: %+v", s)
		}
		mustClose(t, r, 0)
	} else if !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrConfig) {
		t.Errorf("absent prefix: %v", err)
	}

	bad := *cfg
	bad.DiscoveryPattern = "relative/*.db"
	for name, err := range map[string]error{
		"checkCore": checkCore(&bad),
		"Matches":   func() error { _, err := bad.Matches("/a.db"); return err }(),
		"Prefix":    func() error { _, err := bad.Prefix(); return err }(),
		"Open":      func() error { _, err := Open(t.Context(), &bad, Options{Version: "v1"}); return err }(),
	} {
		var e *Error
		if !errors.As(err, &e) || e.Code != ErrConfig || e.Message == "" {
			t.Errorf("%s: %#v", name, err)
		}
	}

	nul := *cfg
	nul.File = &FileConfig{Directory: "/backup\x00/evil", Path: "{{tenant}}"}
	if err := checkCore(&nul); !errors.Is(err, ErrArgument) {
		t.Errorf("NUL: %v", err)
	}
	if err := checkCore(cfg); err != nil {
		t.Error(err)
	}
	if prefix, err := cfg.Prefix(); err != nil || prefix != dir {
		t.Errorf("prefix %q, %v", prefix, err)
	}
}

// replicate -once deletes nothing unless it is told to.
func TestOpen_Retention(t *testing.T) {
	cfg, _ := newFleet(t, 0)
	cfg.Retention = time.Hour
	for _, tt := range []struct {
		opt   Options
		want  time.Duration
		sweep bool
	}{
		{Options{}, time.Hour, false},
		{Options{Once: true}, 0, false},
		{Options{Once: true, EnforceRetention: true}, time.Hour, true},
	} {
		r, err := Open(t.Context(), cfg, tt.opt)
		if err != nil {
			t.Fatal(err)
		}
		if r.cfg.Retention != tt.want || r.sweep != tt.sweep || cfg.Retention != time.Hour {
			t.Errorf("%+v: retention %s, sweep %v", tt.opt, r.cfg.Retention, r.sweep)
		}
		mustClose(t, r, 0)
	}
}

func TestCompareABI(t *testing.T) {
	if abiError != nil {
		t.Error(abiError)
	}
	for _, tt := range []struct {
		library, header uint32
		ok              bool
	}{
		{0x00010000, 0x00010000, true},
		{0x00010002, 0x00010001, true},
		{0x00010000, 0x00010001, false},
		{0x00020000, 0x00010000, false},
		{0x00010000, 0x00020000, false},
	} {
		if err := compareABI(tt.library, tt.header); (err == nil) != tt.ok {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}

func TestRefuseDB(t *testing.T) {
	cfg, dir := newFleet(t, 1)
	r := mustOpen(t, cfg)
	root := filepath.Dir(dir)
	if err := os.Symlink("data", filepath.Join(root, "alias")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("data/t0.db", filepath.Join(root, "link.sqlite")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "t0.db"), filepath.Join(root, "hard.sqlite")); err != nil {
		t.Fatal(err)
	}
	for name, refused := range map[string]bool{
		"data/t0.db": true, "data/new.db": true, "data/../data/t0.db": true, "alias/t0.db": true, "alias/new.db": true,
		"link.sqlite": true, "hard.sqlite": false, "other.db": false, "data/t0.sqlite": false, "data/sub/t0.db": false,
	} {
		err := r.RefuseDB(root + "/" + name)
		if (err != nil) != refused {
			t.Errorf("%s: %v", name, err)
		}
		if refused && !strings.Contains(err.Error(), "is managed by multi_db (discovery_pattern ") {
			t.Errorf("%s: %v", name, err)
		}
	}

	// The prefix itself may be a link.
	cfg.DiscoveryPattern = filepath.Join(root, "alias", "{tenant}.db")
	if err := r.RefuseDB(filepath.Join(dir, "t0.db")); err == nil {
		t.Error("not refused below a linked prefix")
	}
}

// hangingServer accepts connections and never answers.
func hangingServer(t *testing.T) (url string, connected *atomic.Bool) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	connected = new(atomic.Bool)
	var mu sync.Mutex
	var conns []net.Conn
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			connected.Store(true)
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, conn := range conns {
			conn.Close()
		}
	})
	return "http://" + ln.Addr().String(), connected
}

func s3Config(cfg *Config, endpoint string) *Config {
	c := *cfg
	c.File = nil
	c.S3 = &S3Config{Region: "us-east-1", Bucket: "bucket", Path: "x/{{tenant}}", Endpoint: endpoint, ForcePathStyle: true,
		AccessKeyID: "AKIATEST", SecretAccessKey: "sEcReTsEcReT", MaxConcurrentUploads: 10}
	return &c
}

func TestCore_CloseWhileTargetHangs(t *testing.T) {
	cfg, _ := newFleet(t, 3)
	url, connected := hangingServer(t)
	r, err := Open(t.Context(), s3Config(cfg, url), Options{})
	if err != nil {
		t.Fatal(err)
	}
	r.Start()
	eventually(t, "a request hangs", connected.Load)

	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	start := time.Now()
	if err := r.Close(ctx, time.Minute); err != nil && !errors.Is(err, ErrCanceled) {
		t.Error(err)
	}
	if elapsed := time.Since(start); elapsed > 4*time.Second {
		t.Errorf("took %s", elapsed)
	}
}

func TestCore_OnceWhileTargetHangs(t *testing.T) {
	cfg, _ := newFleet(t, 3)
	url, connected := hangingServer(t)
	r := mustOpen(t, s3Config(cfg, url))
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(500*time.Millisecond, cancel)
	start := time.Now()
	if err := r.Once(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("err=%v", err)
	}
	if elapsed := time.Since(start); elapsed > 3*time.Second || !connected.Load() {
		t.Errorf("took %s, connected %v", elapsed, connected.Load())
	}
}

func TestCore_S3Credentials(t *testing.T) {
	logs := captureLog(t)
	cfg, _ := newFleet(t, 3)
	var puts, signed atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		if req.Method == http.MethodGet && req.URL.RawQuery == "" {
			w.WriteHeader(http.StatusNotFound) // the owner object
			return
		}
		if req.Method == http.MethodGet {
			_, _ = io.WriteString(w, `<?xml version="1.0"?><ListBucketResult><Name>bucket</Name><KeyCount>0</KeyCount>`+
				`<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated></ListBucketResult>`)
			return
		}
		if req.Method == http.MethodPut {
			w.Header().Set("ETag", `"0"`)
		}
		if req.Method == http.MethodPut && strings.HasPrefix(req.URL.Path, "/bucket/x/t") {
			puts.Add(1)
			if strings.Contains(req.Header.Get("Authorization"), "AKIATEST/") {
				signed.Add(1)
			}
		}
	}))
	defer srv.Close()
	r := mustOpen(t, s3Config(cfg, srv.URL))
	s := mustOnce(t, r)
	if puts.Load() != 3 || signed.Load() != 3 || s.uploadsSuccess != 3 {
		t.Errorf("%d PUT, %d signed; %+v", puts.Load(), signed.Load(), s)
	}
	if s.costUSDPerDay < 3*0.000005-1e-12 {
		t.Errorf("cost=%v", s.costUSDPerDay)
	}
	if got := s.response(time.Now()).Target; got != "s3://bucket/x/{{tenant}} @"+srv.URL {
		t.Errorf("target=%s", got)
	}
	body, err := json.Marshal(s.response(time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(logs.String(), "sEcReT") || bytes.Contains(body, []byte("sEcReT")) {
		t.Error("a secret came out")
	}
}

// A target that refuses: every database fails with what it said, nothing is lost.
func TestCore_S3Forbidden(t *testing.T) {
	captureLog(t)
	cfg, _ := newFleet(t, 3)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, "<Error><Code>SignatureDoesNotMatch</Code><Message>no</Message></Error>")
	}))
	defer srv.Close()
	r := mustOpen(t, s3Config(cfg, srv.URL))
	err := r.Once(t.Context())
	if err == nil || !strings.Contains(err.Error(), "3 of 3") || !strings.Contains(err.Error(), "403") {
		t.Errorf("err=%v", err)
	}
	s := r.snapshot.Load()
	if s.unsynced != 3 || s.uploadsFailed != 3 || len(s.failures) != 3 || s.failures[0].stage != "upload" {
		t.Errorf("stats: %+v", s)
	}
}

// restoreJSON runs a restore with -json and decodes its output.
func restoreJSON(t *testing.T, cfg *Config, f RestoreFlags) map[string]any {
	t.Helper()
	f.JSON = true
	var out bytes.Buffer
	if err := restore(t.Context(), cfg, f, &out); err != nil {
		t.Fatal(err)
	}
	var result map[string]any
	if err := json.Unmarshal(out.Bytes(), &result); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	return result
}

// A template with {{hostname}}: what another host has backed up needs its name.
func TestRestoreOfAnotherHost(t *testing.T) {
	cfg, dir := newFleet(t, 1)
	cfg.File.Path, cfg.Hostname = "{{hostname}}/{{tenant}}", "one"
	mustOnce(t, mustOpen(t, cfg))

	path, out := filepath.Join(dir, "t0.db"), filepath.Join(t.TempDir(), "out.db")
	here := *cfg
	here.Hostname = "two"
	err := restore(t.Context(), &here, RestoreFlags{Path: path, OutputPath: out}, io.Discard)
	if want := `no matching backup files available: no backups of host "two" in the target; hosts present: one (-host NAME)`; err == nil ||
		err.Error() != want || !isNoBackup(err) {
		t.Errorf("without -host: %v", err)
	}
	err = restore(t.Context(), cfg, RestoreFlags{Path: filepath.Join(dir, "t1.db"), OutputPath: out}, io.Discard)
	if err == nil || strings.Contains(err.Error(), "host") {
		t.Errorf("another database: %v", err)
	}
	for _, verb := range []string{"list", "restore", "verify", "status"} {
		if _, err := run(t, &here, verb); err == nil || !strings.Contains(err.Error(), `no backups of host "two" in the target; hosts present: one (-host NAME)`) {
			t.Errorf("%s: %v", verb, err)
		}
		if _, err := run(t, &here, verb, "-host", "one"); verb != "restore" && err != nil {
			t.Errorf("%s -host: %v", verb, err)
		}
	}
	if err := restore(t.Context(), &here, RestoreFlags{Path: path, OutputPath: out, Host: "one"}, io.Discard); err != nil {
		t.Fatal(err)
	}
	if got := querySQL(t, out, "SELECT x FROM t"); got != "row of 0" {
		t.Errorf("restored %q", got)
	}

	none, _ := newFleet(t, 0)
	if err := restore(t.Context(), none, RestoreFlags{Path: path, Host: "one"}, io.Discard); err == nil || !strings.Contains(err.Error(), "has no {{hostname}}") {
		t.Errorf("-host without {{hostname}}: %v", err)
	}
}

func TestRestore(t *testing.T) {
	logs := captureLog(t)
	cfg, dir := newFleet(t, 3)
	r := mustOpen(t, cfg)
	mustOnce(t, r) // stays open: a restore works beside it
	path := filepath.Join(dir, "t2.db")
	key := "x/t2/"

	t.Run("OutputPath", func(t *testing.T) {
		out := filepath.Join(t.TempDir(), "out.db")
		result := restoreJSON(t, cfg, RestoreFlags{Path: path, OutputPath: out, IntegrityCheck: "full"})
		if result["db_path"] != out || result["replica"] != "file" || result["txid"] != "" ||
			result["integrity_check"] != "full" || result["duration_ms"] == nil || result["database_size"] != 8192.0 ||
			!strings.HasPrefix(result["key"].(string), key) {
			t.Errorf("result %v", result)
		}
		if at, err := time.Parse(time.RFC3339, result["snapshot_time"].(string)); err != nil || time.Since(at) > time.Minute {
			t.Errorf("snapshot_time %v", result["snapshot_time"])
		}
		if got := querySQL(t, out, "SELECT x FROM t"); got != "row of 2" {
			t.Errorf("restored %q", got)
		}
	})

	t.Run("Existing", func(t *testing.T) {
		err := restore(t.Context(), cfg, RestoreFlags{Path: path}, io.Discard)
		want := "cannot restore, output path already exists and is not empty: " + path + ". Use -force to overwrite"
		if err == nil || err.Error() != want {
			t.Errorf("err=%v", err)
		}
	})

	t.Run("IfDBNotExists", func(t *testing.T) {
		before := logs.String()
		if err := restore(t.Context(), cfg, RestoreFlags{Path: path, IfDBNotExists: true}, io.Discard); err != nil {
			t.Error(err)
		}
		if got := strings.TrimPrefix(logs.String(), before); !strings.Contains(got, "database already exists, skipping") {
			t.Errorf("log: %s", got)
		}
	})

	t.Run("Force", func(t *testing.T) {
		if err := os.WriteFile(path, []byte("overwritten by mistake"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := restore(t.Context(), cfg, RestoreFlags{Path: path, Force: true}, io.Discard); err != nil {
			t.Fatal(err)
		}
		if got := querySQL(t, path, "SELECT x FROM t"); got != "row of 2" {
			t.Errorf("restored %q", got)
		}
	})

	t.Run("Sidecar", func(t *testing.T) {
		out := filepath.Join(t.TempDir(), "out.db")
		if err := os.WriteFile(out+"-wal", []byte("stale"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := restore(t.Context(), cfg, RestoreFlags{Path: path, OutputPath: out}, io.Discard)
		if err == nil || !strings.Contains(err.Error(), "SQLite sidecar path already exists: "+out+"-wal. Use -force") {
			t.Errorf("err=%v", err)
		}
	})

	t.Run("Directory", func(t *testing.T) {
		err := restore(t.Context(), cfg, RestoreFlags{Path: path, OutputPath: dir, Force: true}, io.Discard)
		if err == nil || err.Error() != "cannot restore, output path is a directory: "+dir {
			t.Errorf("err=%v", err)
		}
	})

	t.Run("NoBackup", func(t *testing.T) {
		f := RestoreFlags{Path: filepath.Join(dir, "never.db")}
		err := restore(t.Context(), cfg, f, io.Discard)
		if err == nil || !strings.HasPrefix(err.Error(), "no matching backup files available") || !errors.Is(err, ErrNotFound) {
			t.Errorf("err=%v", err)
		}
		f.IfReplicaExists = true
		if err := restore(t.Context(), cfg, f, io.Discard); err != nil {
			t.Error(err)
		}
		if !strings.Contains(logs.String(), "no matching backups found") {
			t.Errorf("log: %s", logs)
		}
		f.DryRun = true
		if err := restore(t.Context(), cfg, f, io.Discard); err == nil {
			t.Error("a dry run found a backup")
		}
	})

	t.Run("Timestamp", func(t *testing.T) {
		out := filepath.Join(t.TempDir(), "out.db")
		for _, at := range []time.Time{time.Unix(0, 0), time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC), time.Now().Add(-time.Hour)} {
			err := restore(t.Context(), cfg, RestoreFlags{Path: path, OutputPath: out, Timestamp: at}, io.Discard)
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("%s: err=%v", at, err)
			}
		}
		f := RestoreFlags{Path: path, OutputPath: out, Timestamp: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}
		if err := restore(t.Context(), cfg, f, io.Discard); err != nil {
			t.Error(err)
		}
	})

	t.Run("DryRun", func(t *testing.T) {
		out := filepath.Join(t.TempDir(), "out.db")
		f := RestoreFlags{Path: path, OutputPath: out, DryRun: true}
		plan := restoreJSON(t, cfg, f)
		files := plan["files"].([]any)
		if plan["source"] != path || plan["target_path"] != out || plan["replica"] != "file" || len(files) != 1 ||
			!strings.HasPrefix(plan["key"].(string), key) || plan["database_size"] != 8192.0 {
			t.Errorf("plan %v", plan)
		}
		var text bytes.Buffer
		if err := restore(t.Context(), cfg, f, &text); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"Restore plan:\n", "  source: " + path + "\n", "  target: " + out + "\n",
			"  replica: file\n", "  object: " + key, "  snapshot time: 2"} {
			if !strings.Contains(text.String(), want) {
				t.Errorf("no %q in %s", want, &text)
			}
		}
		if _, err := os.Lstat(out); !os.IsNotExist(err) {
			t.Error("a dry run wrote the database")
		}
	})

	t.Run("InvalidIntegrityCheck", func(t *testing.T) {
		err := restore(t.Context(), cfg, RestoreFlags{Path: path, IntegrityCheck: "some"}, io.Discard)
		if err == nil || err.Error() != "invalid -integrity-check value: some" {
			t.Errorf("err=%v", err)
		}
	})

	t.Run("Canceled", func(t *testing.T) {
		url, _ := hangingServer(t)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(200*time.Millisecond, cancel)
		out := filepath.Join(t.TempDir(), "out.db")
		start := time.Now()
		err := restore(ctx, s3Config(cfg, url), RestoreFlags{Path: path, OutputPath: out}, io.Discard)
		if !errors.Is(err, context.Canceled) || time.Since(start) > 3*time.Second {
			t.Errorf("err=%v after %s", err, time.Since(start))
		}
	})

	t.Run("NoBucket", func(t *testing.T) {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, "<Error><Code>NoSuchBucket</Code><Message>no</Message></Error>")
		}))
		defer srv.Close()
		f := RestoreFlags{Path: path, OutputPath: filepath.Join(t.TempDir(), "out.db"), IfReplicaExists: true}
		if err := restore(t.Context(), s3Config(cfg, srv.URL), f, io.Discard); err == nil {
			t.Error("a bucket that does not exist passed for one without backups")
		}
	})

	t.Run("NoDirectory", func(t *testing.T) {
		c := *cfg
		c.File = &FileConfig{Directory: filepath.Join(filepath.Dir(dir), "not-mounted"), Path: "x/{{tenant}}"}
		f := RestoreFlags{Path: path, OutputPath: filepath.Join(t.TempDir(), "out.db"), IfReplicaExists: true}
		if err := restore(t.Context(), &c, f, io.Discard); err == nil {
			t.Error("a directory that does not exist passed for one without backups")
		}
	})
}

// run carries out a command line against cfg.
func run(t *testing.T, cfg *Config, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := newTestEnv(t, cfg, openFleet, &out, io.Discard).run(t.Context(), args)
	return out.String(), err
}

func TestRunCommand_Plan(t *testing.T) {
	cfg, dir := newFleet(t, 12)
	r := mustOpen(t, cfg) // plan does not need its lock
	defer mustClose(t, r, 0)

	text, err := run(t, cfg, "plan", "-config", "/other.yml", "-no-expand-env")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"12 (", "in 1 directory", dir, "x/t1", targetName(cfg)} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	if strings.Contains(text, "$") {
		t.Errorf("a directory costs something:\n%s", text)
	}

	text, err = run(t, s3Config(cfg, ""), "plan", "-json")
	if err != nil {
		t.Fatal(err)
	}
	var plan planOutput
	if err := json.Unmarshal([]byte(text), &plan); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if plan.Databases != 12 || plan.DatabaseBytes < 12*8192 || plan.Directories != 1 || plan.Prefix != dir ||
		len(plan.Samples) != planSamples || plan.Cost == nil || plan.Cost.FirstSyncPuts != 12 ||
		plan.Cost.USDPerThousandUploads != 0.005 {
		t.Errorf("plan: %+v", plan)
	}
	for _, s := range plan.Samples {
		tenant := strings.TrimSuffix(filepath.Base(s.Path), ".db")
		if filepath.Dir(s.Path) != dir || s.Key != "x/"+tenant || s.DatabaseSize != 8192 || s.Error != "" {
			t.Errorf("sample: %+v", s)
		}
	}
	if text, err := run(t, s3Config(cfg, ""), "plan"); err != nil || !strings.Contains(text, "12 PUT = $0.00") {
		t.Errorf("%v:\n%s", err, text)
	}
}

func TestRunCommand_PlanFails(t *testing.T) {
	cfg, dir := newFleet(t, 1)
	cfg.DiscoveryPattern = filepath.Join(dir, "{tenant}.sqlite")
	if _, err := run(t, cfg, "plan"); err == nil || !strings.Contains(err.Error(), "no database matches") {
		t.Errorf("nothing matched: %v", err)
	}

	// A component of a key holds 255 bytes; a name of control bytes triples.
	cfg.DiscoveryPattern = filepath.Join(dir, "{tenant}.db")
	if err := os.WriteFile(filepath.Join(dir, strings.Repeat("\x01", 100)+".db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := run(t, cfg, "plan")
	if err == nil || !strings.Contains(err.Error(), "1 name gives no legal key") || !strings.Contains(text, "(none: ") {
		t.Errorf("bad name: %v\n%s", err, text)
	}
}

func TestRunCommand_Status(t *testing.T) {
	cfg, dir := newFleet(t, 3)
	if text, err := run(t, cfg, "status"); err == nil || !strings.Contains(err.Error(), "has replicate run?") {
		t.Errorf("before the first cycle: %v\n%s", err, text)
	}

	if err := os.WriteFile(filepath.Join(dir, "empty.db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := mustOpen(t, cfg)
	mustOnce(t, r)
	execSQL(t, filepath.Join(dir, "t1.db"), "INSERT INTO t VALUES ('more')")
	text, err := run(t, cfg, "status", "-json")
	if err != nil {
		t.Fatalf("changed alone: %v", err)
	}
	var status statusOutput
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if status.Databases != 4 || status.NotDatabases != 1 || status.Synced != 2 || status.Changed != 1 || status.Never != 0 ||
		!status.StateFound || status.LastBackup == nil {
		t.Errorf("status: %+v", status)
	}
	if c := status.LastCycle; c == nil || c.Databases != 4 || c.Unsynced != 0 || c.Changed != 4 || c.CycleSeconds <= 0 {
		t.Errorf("last cycle: %+v", c)
	} else if st := c.StageSeconds; st.Walk <= 0 || st.Track <= 0 || st.Read <= 0 || st.Encode <= 0 || st.UploadWait <= 0 || st.Commit <= 0 ||
		st.Walk+st.Track > 2*c.CycleSeconds*float64(runtime.NumCPU()) {
		t.Errorf("stages of the last cycle of %g s: %+v", c.CycleSeconds, st)
	}
	if text, err := run(t, cfg, "status"); err != nil || !strings.Contains(text, "last backup") || !strings.Contains(text, "upload wait") {
		t.Errorf("%v:\n%s", err, text)
	}

	execSQL(t, filepath.Join(dir, "new.db"), "CREATE TABLE t (x)")
	if _, err := run(t, cfg, "status"); err == nil || !strings.Contains(err.Error(), "1 database has never been backed up") {
		t.Errorf("never: %v", err)
	}
}

func TestRunCommand_Usage(t *testing.T) {
	for _, args := range [][]string{{}, {"-h"}, {"--help"}, {"plan", "-h"}, {"status", "-help"}} {
		out, err := run(t, nil, args...)
		if !errors.Is(err, flag.ErrHelp) || !strings.Contains(out, "Usage:") {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	if out, err := run(t, nil, "help"); err != nil || !strings.Contains(out, "plan") || !strings.Contains(out, "status") {
		t.Errorf("help: %v\n%s", err, out)
	}
	if out, err := run(t, nil, "plot"); err == nil || err.Error() != "litestream multi-db plot: unknown command" || !strings.Contains(out, "Usage:") {
		t.Errorf("unknown: %v\n%s", err, out)
	}
	if _, err := run(t, nil, "plan", "extra"); err == nil || err.Error() != "too many arguments" {
		t.Errorf("extra: %v", err)
	}
	if _, err := run(t, nil, "plan"); err == nil || !strings.Contains(err.Error(), "no multi_db section in config, or it has enabled: false: /etc/litestream.yml") {
		t.Errorf("no section: %v", err)
	}
	failing := func(string, bool) (*Config, error) { return nil, errTest }
	if err := RunCommand(t.Context(), []string{"plan"}, failing, func() string { return "" }); !errors.Is(err, errTest) {
		t.Errorf("load: %v", err)
	}
}

// The verbs on a real fleet: what is listed, restored, verified and deleted.
func TestFleetCommands(t *testing.T) {
	captureLog(t)
	cfg, dir := newFleet(t, 70) // more than one batch of rows
	r := mustOpen(t, cfg)
	mustOnce(t, r)
	if err := os.Remove(filepath.Join(dir, "t5.db")); err != nil {
		t.Fatal(err)
	}

	out, err := run(t, cfg, "list", "-json")
	if err != nil {
		t.Fatal(err)
	}
	rows, summary := decodeRows(t, out)
	if len(rows) != 70 || summary["ok"] != 69.0 || summary["gone"] != 1.0 || summary["never"] != 0.0 || summary["backups"] != 70.0 {
		t.Errorf("%d rows, %v", len(rows), summary)
	}
	for _, row := range rows {
		if gone := row["path"] == filepath.Join(dir, "t5.db"); (row["status"] == "gone") != gone || row["newest"] == nil {
			t.Errorf("row %v", row)
		}
	}

	if out, err = run(t, cfg, "backups", "-json", filepath.Join(dir, "t5.db")); err != nil {
		t.Fatal(err)
	}
	if rows, summary = decodeRows(t, out); len(rows) != 1 || summary["backups"] != 1.0 || rows[0]["database_size"] != 8192.0 ||
		!strings.HasPrefix(rows[0]["key"].(string), "x/t5/2") {
		t.Errorf("%v, %v", rows, summary)
	}

	restored := filepath.Join(t.TempDir(), "restored")
	if out, err = run(t, cfg, "restore", "-json", "-output-dir", restored, "-match", "*/t?.db", "-parallelism", "3"); err != nil {
		t.Fatal(err)
	}
	if rows, summary = decodeRows(t, out); len(rows) != 10 || summary["restored"] != 10.0 || summary["database_bytes"] != 81920.0 {
		t.Errorf("%d rows, %v", len(rows), summary)
	}
	for i := range 10 {
		if got := querySQL(t, filepath.Join(restored, fmt.Sprintf("t%d.db", i)), "SELECT x FROM t"); got != fmt.Sprintf("row of %d", i) {
			t.Errorf("%d: %q", i, got)
		}
	}

	if out, err = run(t, cfg, "verify", "-all", "-json"); err != nil {
		t.Fatalf("%v: %.1000s", err, out)
	}
	if rows, summary = decodeRows(t, out); len(rows) != 70 || summary["verified"] != 70.0 || summary["local_databases"] != 69.0 {
		t.Errorf("%d rows, %v", len(rows), summary)
	}
	r.publish(nil)
	if v := r.snapshot.Load().lastVerify; v == nil || v.Databases != 70 || v.Error != "" {
		t.Errorf("last verify %+v", v)
	}

	if _, err = run(t, cfg, "purge", "-match", "*/t6?.db"); err == nil || err.Error() != "nothing deleted" {
		t.Errorf("err=%v", err)
	}
	if out, err = run(t, cfg, "purge", "-match", "*/t6?.db", "-confirm", "10", "-json"); err != nil {
		t.Fatal(err)
	}
	if rows, summary = decodeRows(t, out); len(rows) != 10 || summary["deleted"] != 10.0 || summary["confirmed"] != true {
		t.Errorf("%d rows, %v", len(rows), summary)
	}
	if _, err = run(t, cfg, "status"); err == nil || err.Error() != "10 databases are backed up by the state, and not in the target" {
		t.Errorf("err=%v", err)
	}
}

// decodeRows takes apart the JSON output of a command.
func decodeRows(t *testing.T, out string) (rows []map[string]any, summary map[string]any) {
	t.Helper()
	for line := range strings.Lines(out) {
		var row map[string]any
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		rows = append(rows, row)
	}
	summary, ok := rows[len(rows)-1]["summary"].(map[string]any)
	if !ok {
		t.Fatalf("no summary: %s", out)
	}
	return rows[:len(rows)-1], summary
}

func TestFleetCommands_Canceled(t *testing.T) {
	cfg, _ := newFleet(t, 1)
	url, _ := hangingServer(t)
	for _, verb := range []string{"list", "restore", "verify", "status"} {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(200*time.Millisecond, cancel)
		start := time.Now()
		err := newTestEnv(t, s3Config(cfg, url), openFleet, io.Discard, io.Discard).run(ctx, []string{verb})
		if err == nil || !strings.Contains(err.Error(), "canceled") || time.Since(start) > 5*time.Second {
			t.Errorf("%s: err=%v after %s", verb, err, time.Since(start))
		}
	}
}

// A task keeps the handle open; after its end nothing more comes of it.
func TestTask_Close(t *testing.T) {
	cfg, _ := newFleet(t, 1)
	c, err := openCore(cfg, true)
	if err != nil {
		t.Fatal(err)
	}
	task, err := c.startTask(taskOptions{kind: taskList})
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	go func() {
		c.close()
		close(closed)
	}()
	time.Sleep(50 * time.Millisecond)
	select {
	case <-closed:
		t.Error("closed under a task")
	default:
	}
	task.close()
	task.close()
	<-closed
	if _, _, err := task.next(0); !errors.Is(err, errClosed) {
		t.Errorf("next: %v", err)
	}
	if _, err := c.startTask(taskOptions{kind: taskList}); !errors.Is(err, errClosed) {
		t.Errorf("start: %v", err)
	}
}
