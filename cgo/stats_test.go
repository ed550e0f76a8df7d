package multidb

import (
	"encoding/json"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func getStats(t *testing.T, method string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	http.DefaultServeMux.ServeHTTP(w, httptest.NewRequest(method, "/stats", nil))
	return w
}

func decodeStats(t *testing.T) map[string]any {
	t.Helper()
	w := getStats(t, http.MethodGet)
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/json" {
		t.Fatalf("GET /stats: %d %s", w.Code, w.Body)
	}
	var stats map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &stats); err != nil {
		t.Fatal(err)
	}
	return stats
}

var statsFields = []string{
	"databases", "changed_last_cycle", "uploads_success", "uploads_failed", "bytes_uploaded", "last_scan",
	"cycles", "unsynced", "oldest_unsynced_seconds", "uploads_skipped_unchanged", "databases_failed",
	"databases_empty", "not_databases", "databases_gone", "scan_seconds", "cycle_seconds", "stage_seconds", "cycle_overruns",
	"api_calls", "cost_usd_per_day", "puts_per_day", "failures", "target", "version", "uptime_seconds", "walk_failures",
	"target_unreachable", "owner", "cycles_failed", "cycle_error", "last_sweep", "sweep", "objects_deleted",
	"databases_reconciled", "uploads_aborted", "last_verify",
}

func TestStats(t *testing.T) {
	f := newFakeEngine()
	f.run = func(int, <-chan struct{}, <-chan struct{}) (cycleResult, error) {
		return cycleResult{databases: 3, uploaded: 2}, nil
	}
	r := newFakeReplicator(t.Context(), f)
	r.RegisterHTTP()
	r.RegisterHTTP() // a second Handle would panic

	stats := decodeStats(t)
	fields := slices.Sorted(maps.Keys(stats))
	want := slices.Sorted(slices.Values(statsFields))
	if !slices.Equal(fields, want) {
		t.Fatalf("fields %v, want %v", fields, want)
	}
	if stats["last_scan"] != nil || stats["oldest_unsynced_seconds"] != nil || stats["last_sweep"] != nil || stats["last_verify"] != nil {
		t.Fatalf("before the first cycle: %v", stats)
	}
	if failures, ok := stats["failures"].([]any); !ok || len(failures) != 0 {
		t.Fatalf("failures=%v, want []", stats["failures"])
	}
	if stats["target"] != "file:///backup/{{tenant}}" || stats["version"] != "v1" {
		t.Fatalf("stats=%v", stats)
	}

	if err := r.Once(t.Context()); err != nil {
		t.Fatal(err)
	}
	stats = decodeStats(t)
	if stats["oldest_unsynced_seconds"] != 0.0 || stats["databases"] != 3.0 || stats["cycles"] != 1.0 {
		t.Fatalf("after the first cycle: %v", stats)
	}
	last, err := time.Parse(time.RFC3339, stats["last_scan"].(string))
	if err != nil || time.Since(last) > time.Minute || !strings.HasSuffix(stats["last_scan"].(string), "Z") {
		t.Fatalf("last_scan=%v, %v", stats["last_scan"], err)
	}
	calls := stats["api_calls"].(map[string]any)
	if len(calls) != 4 || calls["put"] != 2.0 || calls["get"] != 0.0 || calls["list"] != 0.0 || calls["delete"] != 0.0 {
		t.Fatalf("api_calls=%v", calls)
	}

	// The two ages are those of the request, so that a hanging cycle shows.
	f.mu.Lock()
	f.st.oldestUnsynced = time.Now().Add(-time.Minute)
	f.fails = []failure{{"/data/a.db", "upload", "503", 7, time.Now()}}
	f.mu.Unlock()
	if err := r.Once(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := decodeStats(t)
	time.Sleep(20 * time.Millisecond)
	second := decodeStats(t)
	for _, field := range []string{"oldest_unsynced_seconds", "uptime_seconds"} {
		if a, b := first[field].(float64), second[field].(float64); b < a+0.02 {
			t.Errorf("%s went from %v to %v", field, a, b)
		}
	}
	if a := first["oldest_unsynced_seconds"].(float64); a < 60 {
		t.Errorf("oldest_unsynced_seconds=%v", a)
	}
	failure := first["failures"].([]any)[0].(map[string]any)
	if failure["path"] != "/data/a.db" || failure["stage"] != "upload" || failure["message"] != "503" ||
		failure["cycles"] != 7.0 || failure["since"] == nil || len(failure) != 5 {
		t.Errorf("failure=%v", failure)
	}

	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
		if w := getStats(t, method); w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") == "" {
			t.Errorf("%s /stats: %d", method, w.Code)
		}
	}

	if err := r.Close(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if w := getStats(t, http.MethodGet); w.Code != http.StatusServiceUnavailable {
		t.Errorf("after Close: %d", w.Code)
	}
}

// The last replicator to register is shown, and closing an older one changes nothing.
func TestStats_Replaced(t *testing.T) {
	older, newer := newFakeReplicator(t.Context(), newFakeEngine()), newFakeReplicator(t.Context(), newFakeEngine())
	newer.version = "v2"
	newer.publish(nil)
	older.RegisterHTTP()
	newer.RegisterHTTP()
	if err := older.Close(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if got := decodeStats(t)["version"]; got != "v2" {
		t.Fatalf("version=%v", got)
	}
	if err := newer.Close(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
}

// /stats answers while a cycle hangs, with the state before it.
func TestStats_DuringCycle(t *testing.T) {
	f := newFakeEngine()
	started := make(chan struct{})
	f.run = func(n int, finished, canceled <-chan struct{}) (cycleResult, error) {
		close(started)
		return hangs(n, finished, canceled)
	}
	r := newFakeReplicator(t.Context(), f)
	r.RegisterHTTP()
	r.Start()
	<-started
	if got := decodeStats(t)["cycles"]; got != 0.0 {
		t.Fatalf("cycles=%v", got)
	}
	f.cancel()
	if err := r.Close(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
}

func gatherMetrics(t *testing.T) map[string]float64 {
	t.Helper()
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := make(map[string]float64)
	for _, family := range families {
		name, ok := strings.CutPrefix(family.GetName(), "litestream_multi_db_")
		if !ok {
			continue
		}
		for _, m := range family.GetMetric() {
			key := name
			for _, label := range m.GetLabel() {
				key += "," + label.GetName() + "=" + label.GetValue()
			}
			values[key] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return values
}

func TestMetrics(t *testing.T) {
	f := newFakeEngine()
	f.run = takes(0)
	r := newFakeReplicator(t.Context(), f)
	r.RegisterHTTP()
	before := gatherMetrics(t)
	if _, ok := before["oldest_unsynced_seconds"]; ok || len(before) == 0 {
		t.Fatalf("before the first cycle: %v", before)
	}

	f.st = coreStats{
		changedLastCycle: 2, uploadsSuccess: 3, uploadsFailed: 4, bytesUploaded: 5,
		uploadsSkippedUnchanged: 6, unsynced: 7, oldestUnsynced: time.Now().Add(-8 * time.Second),
		databasesFailed: 9, databasesEmpty: 10, notDatabases: 11, databasesGone: 12, walkFailures: 13,
		scanSeconds: 14, cycleSeconds: 15, calls: apiCalls{16, 17, 18, 19}, targetUnreachable: true, owner: ownerUs,
		lastSweep: time.Unix(1700000000, 0), objectsDeleted: 20, databasesReconciled: 21, uploadsAborted: 22,
		sweep:  sweepStats{objects: 23, bytes: 24, calls: apiCalls{list: 25, delete: 26}, seconds: 27, failed: true},
		stages: stageSeconds{28, 29, 30, 31, 32, 33},
	}
	f.run = func(int, <-chan struct{}, <-chan struct{}) (cycleResult, error) {
		return cycleResult{databases: 3, failed: 9}, nil
	}
	wantError(t, r.Once(t.Context()), "multi_db: 9 of 3 databases could not be backed up")
	after := gatherMetrics(t)
	for key, want := range map[string]float64{
		"databases": 3, "changed_last_cycle": 2, "uploads_success": 3, "uploads_failed": 4, "bytes_uploaded": 5,
		"uploads_skipped_unchanged": 6, "unsynced": 7, "databases_failed": 9, "databases_empty": 10,
		"not_databases": 11, "databases_gone": 12, "walk_failures": 13, "scan_seconds": 14, "cycle_seconds": 15,
		"api_calls,operation=PUT": 16, "api_calls,operation=GET": 17, "api_calls,operation=LIST": 18,
		"api_calls,operation=DELETE": 19, "target_unreachable": 1, "owner": 1, "cycles": 1, "cycles_failed": 0,
		"cycle_overruns": 0, "cost_usd_per_day": 0, "puts_per_day": 0, "last_sweep_timestamp_seconds": 1700000000,
		"objects_deleted": 20, "databases_reconciled": 21, "uploads_aborted": 22, "sweep_objects": 23, "sweep_bytes": 24,
		"sweep_list": 25, "sweep_delete": 26, "sweep_seconds": 27, "sweep_failed": 1, "sweep_cost_usd": 0,
		"stage_seconds,stage=walk": 28, "stage_seconds,stage=track": 29, "stage_seconds,stage=read": 30,
		"stage_seconds,stage=encode": 31, "stage_seconds,stage=upload_wait": 32, "stage_seconds,stage=commit": 33,
	} {
		if got, ok := after[key]; !ok || got != want {
			t.Errorf("%s=%v (%v), want %v", key, got, ok, want)
		}
	}
	if got := after["oldest_unsynced_seconds"]; got < 8 || got > 60 {
		t.Errorf("oldest_unsynced_seconds=%v", got)
	}
	if got := after["last_scan_timestamp_seconds"]; math.Abs(got-float64(time.Now().Unix())) > 60 {
		t.Errorf("last_scan_timestamp_seconds=%v", got)
	}
	// Every number of /stats has its series.
	for _, field := range statsFields {
		switch field {
		case "last_scan", "last_sweep", "sweep", "last_verify", "api_calls", "stage_seconds", "failures", "target", "version", "cycle_error":
			continue
		}
		if _, ok := after[field]; !ok {
			t.Errorf("no series for %s", field)
		}
	}

	if err := r.Close(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if values := gatherMetrics(t); len(values) != 0 {
		t.Errorf("after Close: %v", values)
	}
}

// What a sweep and a verify have found is shown, and what a sweep has cost.
func TestStats_SweepAndVerify(t *testing.T) {
	cfg := &Config{SyncInterval: time.Second, StateDir: t.TempDir(), S3: &S3Config{Bucket: "b", AccessKeyID: "a", SecretAccessKey: "s"}}
	f := newFakeEngine()
	f.run = takes(0)
	f.st = coreStats{
		lastSweep: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), objectsDeleted: 1, databasesReconciled: 2, uploadsAborted: 3,
		sweep: sweepStats{objects: 4, bytes: 5, calls: apiCalls{list: 2000, delete: 7}, seconds: 8, failed: true},
	}
	r := newReplicator(t.Context(), cfg, "v1", f)
	r.RegisterHTTP()
	if err := writeLastVerify(cfg, lastVerify{Time: "2026-01-02T15:04:05Z", Databases: 9, Failed: 1, Seconds: 2, Error: "1 of 9"}); err != nil {
		t.Fatal(err)
	}
	if err := r.Once(t.Context()); err != nil {
		t.Fatal(err)
	}
	stats := decodeStats(t)
	if stats["last_sweep"] != "2026-01-02T03:04:05.000Z" || stats["objects_deleted"] != 1.0 ||
		stats["databases_reconciled"] != 2.0 || stats["uploads_aborted"] != 3.0 {
		t.Errorf("%v", stats)
	}
	if want := map[string]any{"objects": 4.0, "bytes": 5.0, "list": 2000.0, "delete": 7.0, "seconds": 8.0, "cost_usd": 0.01, "failed": true}; !maps.Equal(stats["sweep"].(map[string]any), want) {
		t.Errorf("sweep=%v", stats["sweep"])
	}
	if want := map[string]any{"time": "2026-01-02T15:04:05Z", "databases": 9.0, "failed": 1.0, "error": "1 of 9"}; !maps.Equal(stats["last_verify"].(map[string]any), want) {
		t.Errorf("last_verify=%v", stats["last_verify"])
	}
	values := gatherMetrics(t)
	for key, want := range map[string]float64{
		"last_verify_databases": 9, "last_verify_failed": 1, "last_verify_error": 1, "last_verify_timestamp_seconds": 1767366245, "sweep_cost_usd": 0.01,
	} {
		if got, ok := values[key]; !ok || got != want {
			t.Errorf("%s=%v (%v), want %v", key, got, ok, want)
		}
	}
	if err := r.Close(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
}

func TestStats_CostOfS3(t *testing.T) {
	cfg := &Config{SyncInterval: time.Second, S3: &S3Config{Bucket: "b", AccessKeyID: "a", SecretAccessKey: "s"}}
	f := newFakeEngine()
	f.run = func(int, <-chan struct{}, <-chan struct{}) (cycleResult, error) {
		f.mu.Lock()
		f.st.uploadsFirst = 1000
		f.mu.Unlock()
		return cycleResult{databases: 1000, uploaded: 1000}, nil
	}
	r := newReplicator(t.Context(), cfg, "v1", f)
	r.RegisterHTTP()
	for _, want := range []float64{0.005, 0.005 + 1000*86400*0.000005} {
		if err := r.Once(t.Context()); err != nil {
			t.Fatal(err)
		}
		// Another cycle at once is less than an interval away: the window is one interval.
		stats := decodeStats(t)
		if got := stats["cost_usd_per_day"].(float64); math.Abs(got-want) > 1e-9 {
			t.Fatalf("cost=%v, want %v", got, want)
		}
		if got := stats["puts_per_day"].(float64); math.Abs(got*0.000005+0.005-want) > 1e-9 {
			t.Fatalf("puts=%v", got)
		}
	}
	if err := r.Close(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
}
