package multidb

import (
	"context"
	"time"
)

// engine is what the replicator needs of the core: *core, or a fake in tests.
// One goroutine at a time may call cycle; everything else may be called any time.
type engine interface {
	cycle() (cycleResult, error)
	stats() (coreStats, error)
	failures() ([]failure, error)
	nextEvents() ([]event, error)
	setCredentials(c credentials) error
	exclude(path string) error
	// acquire asks for the target, or takes it from whoever has it. It fails with
	// ErrOwned if another replicator has it, with ErrTimeout if there is no answer yet.
	acquire(takeover bool, timeout time.Duration) error
	release(timeout time.Duration) error
	sweep()
	// carry: cycles do not wait for large databases, which go on beside later ones.
	carry(on bool)
	// flush: from now on no database waits for min_interval.
	flush()
	finish()
	cancel()
	close()
}

// cycleResult is the outcome of one scan and sync (struct us_cycle_result).
type cycleResult struct {
	interrupted               bool
	databases, changed        uint64
	uploaded, unchanged       uint64
	failed, walkFailures      uint64
	waiting                   uint64 // for min_interval
	bytesUploaded, gone       uint64
	scanSeconds, cycleSeconds float64
}

// apiCalls counts requests by kind.
type apiCalls struct {
	put, get, list, delete uint64
}

func (c apiCalls) add(o apiCalls) apiCalls {
	return apiCalls{c.put + o.put, c.get + o.get, c.list + o.list, c.delete + o.delete}
}

func (c apiCalls) sub(o apiCalls) apiCalls {
	return apiCalls{c.put - o.put, c.get - o.get, c.list - o.list, c.delete - o.delete}
}

// coreStats is the state after the last completed cycle (struct us_stats).
type coreStats struct {
	cycles                                    uint64
	lastScan                                  time.Time // zero: none yet
	databases, changedLastCycle               uint64
	uploadsSuccess, uploadsFailed             uint64
	bytesUploaded                             uint64
	uploadsSkippedUnchanged                   uint64
	unsynced                                  uint64
	oldestUnsynced                            time.Time // zero: none
	databasesFailed, databasesEmpty           uint64
	notDatabases, databasesGone, walkFailures uint64
	scanSeconds, cycleSeconds                 float64
	calls                                     apiCalls
	targetUnreachable                         bool
	owner                                     ownerStatus
	lastSweep                                 time.Time // the last complete one; zero: none
	sweep                                     sweepStats
	objectsDeleted, databasesReconciled       uint64
	uploadsAborted                            uint64
	uploadsFirst                              uint64 // of databases not uploaded before
	stages                                    stageSeconds
}

// stageSeconds is where the last cycle spent its time. Walk, track, read and encode are
// summed over threads; upload wait is while there was nothing else to do.
type stageSeconds struct {
	Walk       float64 `json:"walk"`
	Track      float64 `json:"track"`
	Read       float64 `json:"read"`
	Encode     float64 `json:"encode"`
	UploadWait float64 `json:"upload_wait"`
	Commit     float64 `json:"commit"`
}

// sweepStats describe the last complete sweep since the start; failed is about the
// last one that was tried.
type sweepStats struct {
	objects, bytes uint64 // what the target held afterwards
	calls          apiCalls
	seconds        float64
	failed         bool
}

// ownerStatus says whether this replicator may write to the target.
type ownerStatus uint32

const (
	ownerUnknown   ownerStatus = 0 // the target could not be asked
	ownerUs        ownerStatus = 1
	ownerOther     ownerStatus = 2
	ownerUnguarded ownerStatus = 3 // the target refuses owner objects
)

func (s ownerStatus) String() string {
	switch s {
	case ownerUs:
		return "this"
	case ownerOther:
		return "another"
	case ownerUnguarded:
		return "unguarded"
	}
	return "unknown"
}

// failure is one of the databases that fail longest (struct us_failure).
type failure struct {
	path, stage, message string
	cycles               uint64
	since                time.Time
}

type eventKind uint32

const (
	eventFailed      eventKind = 1
	eventRecovered   eventKind = 2
	eventNotDatabase eventKind = 3
	eventStateReset  eventKind = 4
	eventUnreachable eventKind = 5
	eventWarning     eventKind = 6
	eventWalkFailed  eventKind = 7
)

// event is something that happened to one database, or to the fleet (struct us_event).
type event struct {
	kind                 eventKind
	path, stage, message string
}

// planResult says what a cycle would see (struct us_plan).
type planResult struct {
	databases, databaseBytes uint64
	directories, withWAL     uint64
	badNames, walkFailures   uint64
	prefix, firstFailure     string
	synced, changed, never   uint64
	lastBackup               time.Time // zero: none
	stateFound               bool
	stateHidden              bool // there is one that cannot be read: firstFailure
	samples                  []sample
}

// sample is one path of a plan with its key, or with the reason why it has none.
type sample struct {
	path, key, message string
	databaseSize       uint64
}

type integrityMode uint32

const (
	integrityNone  integrityMode = 0
	integrityQuick integrityMode = 1
	integrityFull  integrityMode = 2
)

// restoreOptions names the database to restore (struct us_restore_options).
type restoreOptions struct {
	path, outputPath           string
	timestamp                  time.Time // zero: the newest
	force, dryRun, ifNotExists bool
	integrity                  integrityMode
}

// restoreResult describes the chosen backup (struct us_restore_result).
type restoreResult struct {
	skipped                  bool
	key                      string
	mode, pageSize           uint32
	objectSize, databaseSize uint64
	snapshotTime             time.Time
}

// fleet is what the commands need of the core: *reader, or a fake in tests.
type fleet interface {
	plan(samples int) (planResult, error)
	startTask(opt taskOptions) (task, error)
	hosts() ([]string, error)
	signIn(ctx context.Context)
	cancel()
	close()
}

// task is work on many databases under way (struct us_task). One goroutine at a
// time may use it; close comes before the fleet's.
type task interface {
	// next returns the rows found so far, after waiting a while for the first, and
	// how far the task is, also with an error. An error ends the task.
	next(timeout time.Duration) ([]row, progress, error)
	close()
}

type taskKind uint32

const (
	taskList    taskKind = 1
	taskBackups taskKind = 2
	taskRestore taskKind = 3
	taskVerify  taskKind = 4
	taskPurge   taskKind = 5
)

// taskOptions say what a task does (struct us_task_options). What a kind of task
// does not know stays zero.
type taskOptions struct {
	kind                                 taskKind
	path, match, outputDir               string
	timestamp                            time.Time // zero: the newest
	force, dryRun, ifNotExists, fallback bool
	integrity                            integrityMode
	sampleCount                          uint64 // 0: all
	gone                                 bool
	olderThan                            time.Time
	confirmCount                         uint64
}

type rowStatus uint32

const (
	rowOK      rowStatus = 1
	rowGone    rowStatus = 2
	rowNever   rowStatus = 3
	rowSkipped rowStatus = 4
	rowFailed  rowStatus = 5
)

// row is what a task says about one database, or about one object (struct us_row).
type row struct {
	status                     rowStatus
	code                       Code
	path, output, key, message string
	objects, objectsSize       uint64
	objectSize                 uint64
	time                       time.Time // in the name of the object; zero: none
	snapshotTime               time.Time // zero: not read
	databaseSize               uint64
	mode, pageSize             uint32
}

// progress says how far a task is (struct us_progress).
type progress struct {
	finished, listed, confirmed bool
	total, totalSize            uint64 // databases chosen so far, and the bytes of their objects
	done, doneSize              uint64 // of these, over
	failed, skipped             uint64
	databaseSize                uint64
	objects, removed            uint64
	local, walkFailures         uint64
	ours, foreign               uint64
	calls                       apiCalls
}
