package multidb

import (
	"encoding/json"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// snapshot is the state after a completed cycle. It is never changed once it is
// published, so answering from it needs no lock and does not wait for the core.
type snapshot struct {
	coreStats
	failures      []failure
	cycleOverruns uint64
	cyclesFailed  uint64 // cycles that ended without a result; the rest is older then
	cycleError    string // why the last one did, "" if it did not
	costUSDPerDay float64
	putsPerDay    float64 // extrapolated
	sweepCostUSD  float64
	lastVerify    *lastVerify // nil: none is known
	target        string
	version       string
	started       time.Time
}

// oldestUnsyncedSeconds is nil before the first cycle. It grows while a cycle runs:
// a target that hangs must not look like one that is up to date.
func (s *snapshot) oldestUnsyncedSeconds(now time.Time) *float64 {
	if s.cycles == 0 {
		return nil
	}
	var age float64
	if !s.oldestUnsynced.IsZero() {
		age = max(now.Sub(s.oldestUnsynced).Seconds(), 0)
	}
	return &age
}

func (s *snapshot) uptimeSeconds(now time.Time) float64 {
	return now.Sub(s.started).Seconds()
}

// statsResponse is the answer of GET /stats.
type statsResponse struct {
	Databases               uint64            `json:"databases"`
	ChangedLastCycle        uint64            `json:"changed_last_cycle"`
	UploadsSuccess          uint64            `json:"uploads_success"`
	UploadsFailed           uint64            `json:"uploads_failed"`
	BytesUploaded           uint64            `json:"bytes_uploaded"`
	LastScan                *string           `json:"last_scan"`
	Cycles                  uint64            `json:"cycles"`
	Unsynced                uint64            `json:"unsynced"`
	OldestUnsyncedSeconds   *float64          `json:"oldest_unsynced_seconds"`
	UploadsSkippedUnchanged uint64            `json:"uploads_skipped_unchanged"`
	DatabasesFailed         uint64            `json:"databases_failed"`
	DatabasesEmpty          uint64            `json:"databases_empty"`
	NotDatabases            uint64            `json:"not_databases"`
	DatabasesGone           uint64            `json:"databases_gone"`
	WalkFailures            uint64            `json:"walk_failures"`
	TargetUnreachable       bool              `json:"target_unreachable"`
	Owner                   string            `json:"owner"`
	ScanSeconds             float64           `json:"scan_seconds"`
	CycleSeconds            float64           `json:"cycle_seconds"`
	StageSeconds            stageSeconds      `json:"stage_seconds"`
	CycleOverruns           uint64            `json:"cycle_overruns"`
	CyclesFailed            uint64            `json:"cycles_failed"`
	CycleError              string            `json:"cycle_error"`
	APICalls                apiCallsResponse  `json:"api_calls"`
	CostUSDPerDay           float64           `json:"cost_usd_per_day"`
	PutsPerDay              float64           `json:"puts_per_day"`
	LastSweep               *string           `json:"last_sweep"`
	Sweep                   sweepResponse     `json:"sweep"`
	ObjectsDeleted          uint64            `json:"objects_deleted"`
	DatabasesReconciled     uint64            `json:"databases_reconciled"`
	UploadsAborted          uint64            `json:"uploads_aborted"`
	LastVerify              *verifyResponse   `json:"last_verify"`
	Failures                []failureResponse `json:"failures"`
	Target                  string            `json:"target"`
	Version                 string            `json:"version"`
	UptimeSeconds           float64           `json:"uptime_seconds"`
}

type sweepResponse struct {
	Objects uint64  `json:"objects"`
	Bytes   uint64  `json:"bytes"`
	List    uint64  `json:"list"`
	Delete  uint64  `json:"delete"`
	Seconds float64 `json:"seconds"`
	CostUSD float64 `json:"cost_usd"`
	Failed  bool    `json:"failed"`
}

type verifyResponse struct {
	Time      string `json:"time"`
	Databases uint64 `json:"databases"`
	Failed    uint64 `json:"failed"`
	Error     string `json:"error"`
}

type apiCallsResponse struct {
	Put    uint64 `json:"put"`
	Get    uint64 `json:"get"`
	List   uint64 `json:"list"`
	Delete uint64 `json:"delete"`
}

type failureResponse struct {
	Path    string  `json:"path"`
	Stage   string  `json:"stage"`
	Message string  `json:"message"`
	Cycles  uint64  `json:"cycles"`
	Since   *string `json:"since"`
}

func (s *snapshot) response(now time.Time) statsResponse {
	failures := make([]failureResponse, 0, len(s.failures))
	for _, f := range s.failures {
		failures = append(failures, failureResponse{
			Path:    f.path,
			Stage:   f.stage,
			Message: f.message,
			Cycles:  f.cycles,
			Since:   formatTime(f.since),
		})
	}
	return statsResponse{
		Databases:               s.databases,
		ChangedLastCycle:        s.changedLastCycle,
		UploadsSuccess:          s.uploadsSuccess,
		UploadsFailed:           s.uploadsFailed,
		BytesUploaded:           s.bytesUploaded,
		LastScan:                formatTime(s.lastScan),
		Cycles:                  s.cycles,
		Unsynced:                s.unsynced,
		OldestUnsyncedSeconds:   s.oldestUnsyncedSeconds(now),
		UploadsSkippedUnchanged: s.uploadsSkippedUnchanged,
		DatabasesFailed:         s.databasesFailed,
		DatabasesEmpty:          s.databasesEmpty,
		NotDatabases:            s.notDatabases,
		DatabasesGone:           s.databasesGone,
		WalkFailures:            s.walkFailures,
		TargetUnreachable:       s.targetUnreachable,
		Owner:                   s.owner.String(),
		ScanSeconds:             s.scanSeconds,
		CycleSeconds:            s.cycleSeconds,
		StageSeconds:            s.stages,
		CycleOverruns:           s.cycleOverruns,
		CyclesFailed:            s.cyclesFailed,
		CycleError:              s.cycleError,
		APICalls:                apiCallsResponse{s.calls.put, s.calls.get, s.calls.list, s.calls.delete},
		CostUSDPerDay:           s.costUSDPerDay,
		PutsPerDay:              s.putsPerDay,
		LastSweep:               formatTime(s.lastSweep),
		Sweep: sweepResponse{
			Objects: s.sweep.objects,
			Bytes:   s.sweep.bytes,
			List:    s.sweep.calls.list,
			Delete:  s.sweep.calls.delete,
			Seconds: s.sweep.seconds,
			CostUSD: s.sweepCostUSD,
			Failed:  s.sweep.failed,
		},
		ObjectsDeleted:      s.objectsDeleted,
		DatabasesReconciled: s.databasesReconciled,
		UploadsAborted:      s.uploadsAborted,
		LastVerify:          s.lastVerify.response(),
		Failures:            failures,
		Target:              s.target,
		Version:             s.version,
		UptimeSeconds:       s.uptimeSeconds(now),
	}
}

func (v *lastVerify) response() *verifyResponse {
	if v == nil {
		return nil
	}
	return &verifyResponse{v.Time, v.Databases, v.Failed, v.Error}
}

// formatTime is nil for the zero time, RFC 3339 in UTC with milliseconds otherwise.
func formatTime(t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	s := t.UTC().Format("2006-01-02T15:04:05.000Z07:00")
	return &s
}

// current is the replicator that the process-wide HTTP handler and the metrics
// speak for: registering either a second time panics.
var (
	current      atomic.Pointer[UltraSimpleReplicator]
	registerOnce sync.Once
)

// RegisterHTTP serves /stats on the default mux, which Litestream serves on addr,
// and adds our series to its /metrics. The last replicator to call it is shown.
func (r *UltraSimpleReplicator) RegisterHTTP() {
	current.Store(r)
	registerOnce.Do(func() {
		http.HandleFunc("/stats", serveStats)
		prometheus.MustRegister(collector{})
	})
}

func currentSnapshot() *snapshot {
	if r := current.Load(); r != nil {
		return r.snapshot.Load()
	}
	return nil
}

func serveStats(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	s := currentSnapshot()
	if s == nil {
		http.Error(w, "multi_db is not running", http.StatusServiceUnavailable)
		return
	}
	body, err := json.MarshalIndent(s.response(time.Now()), "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(append(body, '\n')) // the client has gone away
}

// metric is one aggregated series. Its name is that of the field in /stats.
type metric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	label string // value of its one label, "" where the series has none
	value func(s *snapshot, now time.Time) (value float64, ok bool)
}

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("litestream_multi_db_"+name, help, labels, nil)
}

func newMetric(kind prometheus.ValueType, name, help string, value func(*snapshot) float64) metric {
	return metric{
		desc:  newDesc(name, help),
		kind:  kind,
		value: func(s *snapshot, _ time.Time) (float64, bool) { return value(s), true },
	}
}

func gauge(name, help string, value func(*snapshot) float64) metric {
	return newMetric(prometheus.GaugeValue, name, help, value)
}

func counter(name, help string, value func(*snapshot) uint64) metric {
	return newMetric(prometheus.CounterValue, name, help,
		func(s *snapshot) float64 { return float64(value(s)) })
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// timestamp is absent while the time is zero.
func timestamp(name, help string, value func(*snapshot) time.Time) metric {
	return metric{
		desc: newDesc(name, help),
		kind: prometheus.GaugeValue,
		value: func(s *snapshot, _ time.Time) (float64, bool) {
			t := value(s)
			return float64(t.UnixMilli()) / 1000, !t.IsZero()
		},
	}
}

// verifyGauge is absent while no verify is known.
func verifyGauge(name, help string, value func(*lastVerify) float64) metric {
	return metric{
		desc: newDesc(name, help),
		kind: prometheus.GaugeValue,
		value: func(s *snapshot, _ time.Time) (float64, bool) {
			if s.lastVerify == nil {
				return 0, false
			}
			return value(s.lastVerify), true
		},
	}
}

var stageDesc = newDesc("stage_seconds", "Where the last cycle spent its time, in seconds, summed over threads", "stage")

func stageMetric(stage string, value func(stageSeconds) float64) metric {
	return metric{
		desc:  stageDesc,
		kind:  prometheus.GaugeValue,
		label: stage,
		value: func(s *snapshot, _ time.Time) (float64, bool) { return value(s.stages), true },
	}
}

var apiCallsDesc = newDesc("api_calls", "Number of requests sent to the target", "operation")

func apiCallsMetric(operation string, value func(apiCalls) uint64) metric {
	return metric{
		desc:  apiCallsDesc,
		kind:  prometheus.CounterValue,
		label: operation,
		value: func(s *snapshot, _ time.Time) (float64, bool) { return float64(value(s.calls)), true },
	}
}

var metrics = []metric{
	gauge("databases", "Number of files that match the discovery pattern",
		func(s *snapshot) float64 { return float64(s.databases) }),
	gauge("changed_last_cycle", "Number of databases that had changed in the last cycle",
		func(s *snapshot) float64 { return float64(s.changedLastCycle) }),
	counter("uploads_success", "Number of objects uploaded",
		func(s *snapshot) uint64 { return s.uploadsSuccess }),
	counter("uploads_failed", "Number of uploads that failed",
		func(s *snapshot) uint64 { return s.uploadsFailed }),
	counter("bytes_uploaded", "Number of bytes uploaded",
		func(s *snapshot) uint64 { return s.bytesUploaded }),
	counter("cycles", "Number of completed cycles",
		func(s *snapshot) uint64 { return s.cycles }),
	counter("cycles_failed", "Number of cycles that ended without a result",
		func(s *snapshot) uint64 { return s.cyclesFailed }),
	counter("cycle_overruns", "Number of cycles that outlasted the sync interval",
		func(s *snapshot) uint64 { return s.cycleOverruns }),
	gauge("unsynced", "Number of databases whose present state is not in the target",
		func(s *snapshot) float64 { return float64(s.unsynced) }),
	counter("uploads_skipped_unchanged", "Number of uploads not needed as the content was the same",
		func(s *snapshot) uint64 { return s.uploadsSkippedUnchanged }),
	gauge("databases_failed", "Number of databases that failed in the last cycle",
		func(s *snapshot) float64 { return float64(s.databasesFailed) }),
	gauge("databases_empty", "Number of matching files of zero length",
		func(s *snapshot) float64 { return float64(s.databasesEmpty) }),
	gauge("not_databases", "Number of matching files that are no SQLite database",
		func(s *snapshot) float64 { return float64(s.notDatabases) }),
	counter("databases_gone", "Number of databases that have disappeared",
		func(s *snapshot) uint64 { return s.databasesGone }),
	gauge("walk_failures", "Number of directories and files that could not be looked at in the last cycle",
		func(s *snapshot) float64 { return float64(s.walkFailures) }),
	gauge("target_unreachable", "Whether the last cycle gave up on the target",
		func(s *snapshot) float64 { return oneIf(s.targetUnreachable) }),
	gauge("owner", "Whether this replicator may write to the target",
		func(s *snapshot) float64 { return oneIf(s.owner == ownerUs || s.owner == ownerUnguarded) }),
	gauge("scan_seconds", "Duration of the last scan, in seconds",
		func(s *snapshot) float64 { return s.scanSeconds }),
	gauge("cycle_seconds", "Duration of the last cycle, in seconds",
		func(s *snapshot) float64 { return s.cycleSeconds }),
	gauge("cost_usd_per_day", "What the present rate of change costs a day at the list prices of S3, in US dollars",
		func(s *snapshot) float64 { return s.costUSDPerDay }),
	gauge("puts_per_day", "Number of uploads a day at the present rate of change, first backups left out",
		func(s *snapshot) float64 { return s.putsPerDay }),
	gauge("sweep_objects", "Number of objects that the last sweep left in the target",
		func(s *snapshot) float64 { return float64(s.sweep.objects) }),
	gauge("sweep_bytes", "Number of bytes that the last sweep left in the target",
		func(s *snapshot) float64 { return float64(s.sweep.bytes) }),
	gauge("sweep_list", "Number of LIST requests of the last sweep",
		func(s *snapshot) float64 { return float64(s.sweep.calls.list) }),
	gauge("sweep_delete", "Number of DELETE requests of the last sweep",
		func(s *snapshot) float64 { return float64(s.sweep.calls.delete) }),
	gauge("sweep_seconds", "Duration of the last sweep, in seconds",
		func(s *snapshot) float64 { return s.sweep.seconds }),
	gauge("sweep_cost_usd", "Cost of the requests of the last sweep at the list prices of S3, in US dollars",
		func(s *snapshot) float64 { return s.sweepCostUSD }),
	gauge("sweep_failed", "Whether the last sweep that was tried did not reach its end",
		func(s *snapshot) float64 { return oneIf(s.sweep.failed) }),
	counter("objects_deleted", "Number of objects deleted by retention",
		func(s *snapshot) uint64 { return s.objectsDeleted }),
	counter("databases_reconciled", "Number of databases marked for upload as the target lacked their newest object",
		func(s *snapshot) uint64 { return s.databasesReconciled }),
	counter("uploads_aborted", "Number of unfinished uploads in parts that were aborted",
		func(s *snapshot) uint64 { return s.uploadsAborted }),
	stageMetric("walk", func(s stageSeconds) float64 { return s.Walk }),
	stageMetric("track", func(s stageSeconds) float64 { return s.Track }),
	stageMetric("read", func(s stageSeconds) float64 { return s.Read }),
	stageMetric("encode", func(s stageSeconds) float64 { return s.Encode }),
	stageMetric("upload_wait", func(s stageSeconds) float64 { return s.UploadWait }),
	stageMetric("commit", func(s stageSeconds) float64 { return s.Commit }),
	apiCallsMetric("PUT", func(c apiCalls) uint64 { return c.put }),
	apiCallsMetric("GET", func(c apiCalls) uint64 { return c.get }),
	apiCallsMetric("LIST", func(c apiCalls) uint64 { return c.list }),
	apiCallsMetric("DELETE", func(c apiCalls) uint64 { return c.delete }),
	timestamp("last_scan_timestamp_seconds", "Unix time of the start of the last scan",
		func(s *snapshot) time.Time { return s.lastScan }),
	timestamp("last_sweep_timestamp_seconds", "Unix time of the start of the last complete sweep",
		func(s *snapshot) time.Time { return s.lastSweep }),
	timestamp("last_verify_timestamp_seconds", "Unix time of the last verify",
		func(s *snapshot) time.Time { return s.lastVerify.at() }),
	verifyGauge("last_verify_databases", "Number of databases that the last verify checked",
		func(v *lastVerify) float64 { return float64(v.Databases) }),
	verifyGauge("last_verify_failed", "Number of databases that failed in the last verify",
		func(v *lastVerify) float64 { return float64(v.Failed) }),
	verifyGauge("last_verify_error", "Whether the last verify ended with an error",
		func(v *lastVerify) float64 { return oneIf(v.Error != "") }),
	{
		desc: newDesc("oldest_unsynced_seconds", "How long the worst database has been known as changed, in seconds"),
		kind: prometheus.GaugeValue,
		value: func(s *snapshot, now time.Time) (float64, bool) {
			age := s.oldestUnsyncedSeconds(now)
			if age == nil {
				return 0, false
			}
			return *age, true
		},
	},
	{
		desc:  newDesc("uptime_seconds", "Time since the start, in seconds"),
		kind:  prometheus.GaugeValue,
		value: func(s *snapshot, now time.Time) (float64, bool) { return s.uptimeSeconds(now), true },
	},
}

// collector exports the current snapshot. There is never a label per database.
type collector struct{}

func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range metrics {
		if m.label == "" {
			ch <- m.desc
		}
	}
	ch <- apiCallsDesc
	ch <- stageDesc
}

func (collector) Collect(ch chan<- prometheus.Metric) {
	s := currentSnapshot()
	if s == nil {
		return
	}
	now := time.Now()
	for _, m := range metrics {
		value, ok := m.value(s, now)
		if !ok {
			continue
		}
		if m.label != "" {
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, value, m.label)
		} else {
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, value)
		}
	}
}
