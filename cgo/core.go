//go:build cgo && linux

package multidb

/*
#cgo CFLAGS: -I${SRCDIR}/../csrc/include
#cgo LDFLAGS: ${SRCDIR}/../build/libultrasimple.a -lcurl -llz4 -lsqlite3 -lexpat -lssl -lcrypto -lpthread -lm

// The core never calls Go, and keeps no pointer of ours beyond a call.
#cgo noescape us_abi_version
#cgo nocallback us_abi_version
#cgo noescape us_check
#cgo nocallback us_check
#cgo noescape us_open
#cgo nocallback us_open
#cgo noescape us_close
#cgo nocallback us_close
#cgo noescape us_set_credentials
#cgo nocallback us_set_credentials
#cgo noescape us_cancel
#cgo nocallback us_cancel
#cgo noescape us_finish
#cgo nocallback us_finish
#cgo noescape us_cycle
#cgo nocallback us_cycle
#cgo noescape us_stats
#cgo nocallback us_stats
#cgo noescape us_failures
#cgo nocallback us_failures
#cgo noescape us_next_events
#cgo nocallback us_next_events
#cgo noescape us_plan
#cgo nocallback us_plan
#cgo noescape us_match
#cgo nocallback us_match
#cgo noescape us_prefix
#cgo nocallback us_prefix
#cgo noescape us_restore
#cgo nocallback us_restore
#cgo noescape us_sweep
#cgo nocallback us_sweep
#cgo noescape us_acquire
#cgo nocallback us_acquire
#cgo noescape us_release
#cgo nocallback us_release
#cgo noescape us_carry
#cgo nocallback us_carry
#cgo noescape us_flush
#cgo nocallback us_flush
#cgo noescape us_task_start
#cgo nocallback us_task_start
#cgo noescape us_task_next
#cgo nocallback us_task_next
#cgo noescape us_task_close
#cgo nocallback us_task_close
#cgo noescape us_hosts
#cgo nocallback us_hosts

#include <stdlib.h>
#include "ultrasimple.h"
*/
import "C"

import (
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// Does not compile unless the codes of errors.go are those of the header.
var _ = [1]struct{}{}[(C.US_E_NOMEM-ErrNoMemory)|(C.US_E_ARG-ErrArgument)|(C.US_E_CONFIG-ErrConfig)|
	(C.US_E_IO-ErrIO)|(C.US_E_NOTFOUND-ErrNotFound)|(C.US_E_EXISTS-ErrExists)|
	(C.US_E_BUSY-ErrBusy)|(C.US_E_NOTDB-ErrNotDatabase)|(C.US_E_EMPTY-ErrEmpty)|
	(C.US_E_CORRUPT-ErrCorrupt)|(C.US_E_NAME-ErrName)|(C.US_E_ACCESS-ErrAccess)|
	(C.US_E_NETWORK-ErrNetwork)|(C.US_E_TIMEOUT-ErrTimeout)|(C.US_E_HTTP-ErrHTTP)|
	(C.US_E_OBJECT-ErrObject)|(C.US_E_CANCELED-ErrCanceled)|(C.US_E_LOCKED-ErrLocked)|
	(C.US_E_NOSPACE-ErrNoSpace)|(C.US_E_STATE-ErrState)|(C.US_E_UNSUPPORTED-ErrUnsupported)|
	(C.US_E_OWNED-ErrOwned)]

// And the same for the other constants of engine.go.
var _ = [1]struct{}{}[(C.US_EVENT_FAILED^eventFailed)|(C.US_EVENT_RECOVERED^eventRecovered)|
	(C.US_EVENT_NOT_DATABASE^eventNotDatabase)|(C.US_EVENT_STATE_RESET^eventStateReset)|
	(C.US_EVENT_UNREACHABLE^eventUnreachable)|(C.US_EVENT_WARNING^eventWarning)|
	(C.US_EVENT_WALK_FAILED^eventWalkFailed)]
var _ = [1]struct{}{}[(C.US_INTEGRITY_NONE^integrityNone)|(C.US_INTEGRITY_QUICK^integrityQuick)|
	(C.US_INTEGRITY_FULL^integrityFull)]
var _ = [1]struct{}{}[(C.US_TASK_LIST^taskList)|(C.US_TASK_BACKUPS^taskBackups)|
	(C.US_TASK_RESTORE^taskRestore)|(C.US_TASK_VERIFY^taskVerify)|(C.US_TASK_PURGE^taskPurge)]
var _ = [1]struct{}{}[(C.US_OWNER_UNKNOWN^ownerUnknown)|(C.US_OWNER_US^ownerUs)|
	(C.US_OWNER_OTHER^ownerOther)|(C.US_OWNER_UNGUARDED^ownerUnguarded)]
var _ = [1]struct{}{}[(C.US_ROW_OK^rowOK)|(C.US_ROW_GONE^rowGone)|(C.US_ROW_NEVER^rowNever)|
	(C.US_ROW_SKIPPED^rowSkipped)|(C.US_ROW_FAILED^rowFailed)]

// eventBatch is how many events cross from C at once.
const eventBatch = 64

// rowBatch is how many rows of a task cross from C at once.
const rowBatch = 64

// prefixCapacity holds any path the system can open, and its NUL.
const prefixCapacity = 4096

// abiError is reported by everything that would call a library of another version.
var abiError error

func init() {
	abiError = compareABI(uint32(C.us_abi_version()), C.US_ABI_VERSION)
}

func compareABI(library, header uint32) error {
	if library>>16 == header>>16 && library&0xffff >= header&0xffff {
		return nil
	}
	return fmt.Errorf("multi_db: libultrasimple has ABI version 0x%08x, this program was compiled for 0x%08x: run `make`",
		library, header)
}

// core is one open handle. Its methods may be called from any goroutine.
type core struct {
	calls sync.RWMutex // read by every call, written by close alone
	owner sync.Mutex   // held by the one call that needs the handle for itself
	ptr   *C.struct_us // nil: closed
	net   runtime.Cleanup

	buffers    sync.Mutex // guards what follows; allocated once, as it is large
	eventBuf   []C.struct_us_event
	failureBuf []C.struct_us_failure
}

// openCore opens the fleet that cfg describes. A read-only handle takes no lock,
// writes no state and cannot run cycles.
func openCore(cfg *Config, readOnly bool) (*core, error) {
	if abiError != nil {
		return nil, abiError
	}
	var a arena
	defer a.free()
	options := a.options(cfg)
	if readOnly {
		options.flags |= C.US_OPEN_READ_ONLY
	}
	if a.err != nil {
		return nil, a.err
	}

	var ptr *C.struct_us
	cerr := newCError()
	if rc := C.us_open(&options, &ptr, &cerr); rc < 0 {
		return nil, coreError(rc, &cerr)
	}
	c := &core{ptr: ptr}
	c.net = runtime.AddCleanup(c, func(ptr *C.struct_us) { C.us_close(ptr) }, ptr)
	return c, nil
}

// close cancels what is under way, waits for it, and frees the handle. Idempotent.
func (c *core) close() {
	c.cancel()
	c.calls.Lock()
	defer c.calls.Unlock()
	if c.ptr == nil {
		return
	}
	c.net.Stop()
	C.us_close(c.ptr)
	c.ptr = nil
}

// begin keeps the handle open until end.
func (c *core) begin() error {
	c.calls.RLock()
	if c.ptr == nil {
		c.calls.RUnlock()
		return errClosed
	}
	return nil
}

func (c *core) end() { c.calls.RUnlock() }

func (c *core) cancel() {
	if c.begin() == nil {
		defer c.end()
		C.us_cancel(c.ptr)
	}
}

// exclude keeps the core from ever opening the database at path.
func (c *core) exclude(path string) error {
	if err := c.begin(); err != nil {
		return err
	}
	defer c.end()
	cpath := C.CString(path)
	defer C.free(unsafe.Pointer(cpath))
	cerr := newCError()
	if rc := C.us_exclude(c.ptr, cpath, &cerr); rc < 0 {
		return coreError(rc, &cerr)
	}
	return nil
}

func (c *core) finish() {
	if c.begin() == nil {
		defer c.end()
		C.us_finish(c.ptr)
	}
}

func (c *core) acquire(takeover bool, timeout time.Duration) error {
	if err := c.begin(); err != nil {
		return err
	}
	defer c.end()
	var flags C.uint32_t
	if takeover {
		flags = C.US_ACQUIRE_TAKEOVER
	}
	cerr := newCError()
	if rc := C.us_acquire(c.ptr, flags, C.int32_t(timeout.Milliseconds()), &cerr); rc < 0 {
		return coreError(rc, &cerr)
	}
	return nil
}

func (c *core) release(timeout time.Duration) error {
	if err := c.begin(); err != nil {
		return err
	}
	defer c.end()
	cerr := newCError()
	if rc := C.us_release(c.ptr, C.int32_t(timeout.Milliseconds()), &cerr); rc < 0 {
		return coreError(rc, &cerr)
	}
	return nil
}

// sweep makes the next cycle begin with a sweep of the target.
func (c *core) sweep() {
	if c.begin() == nil {
		defer c.end()
		C.us_sweep(c.ptr)
	}
}

// carry says whether cycles leave large databases to later ones.
func (c *core) carry(on bool) {
	if c.begin() == nil {
		defer c.end()
		var carries C.uint32_t
		if on {
			carries = 1
		}
		C.us_carry(c.ptr, carries)
	}
}

func (c *core) flush() {
	if c.begin() == nil {
		defer c.end()
		C.us_flush(c.ptr)
	}
}

func (c *core) cycle() (cycleResult, error) {
	if err := c.begin(); err != nil {
		return cycleResult{}, err
	}
	defer c.end()
	c.owner.Lock()
	defer c.owner.Unlock()

	cerr := newCError()
	r := C.struct_us_cycle_result{struct_size: C.sizeof_struct_us_cycle_result}
	if rc := C.us_cycle(c.ptr, &r, &cerr); rc < 0 {
		return cycleResult{}, coreError(rc, &cerr)
	}
	return cycleResult{
		interrupted:   r.interrupted != 0,
		databases:     uint64(r.databases),
		changed:       uint64(r.changed),
		uploaded:      uint64(r.uploaded),
		unchanged:     uint64(r.unchanged),
		failed:        uint64(r.failed),
		walkFailures:  uint64(r.walk_failures),
		bytesUploaded: uint64(r.bytes_uploaded),
		gone:          uint64(r.gone),
		waiting:       uint64(r.waiting),
		scanSeconds:   float64(r.scan_seconds),
		cycleSeconds:  float64(r.cycle_seconds),
	}, nil
}

func (c *core) stats() (coreStats, error) {
	if err := c.begin(); err != nil {
		return coreStats{}, err
	}
	defer c.end()

	cerr := newCError()
	s := C.struct_us_stats{struct_size: C.sizeof_struct_us_stats}
	if rc := C.us_stats(c.ptr, &s, &cerr); rc < 0 {
		return coreStats{}, coreError(rc, &cerr)
	}
	return coreStats{
		cycles:                  uint64(s.cycles),
		lastScan:                fromNanos(s.last_scan_ns),
		databases:               uint64(s.databases),
		changedLastCycle:        uint64(s.changed_last_cycle),
		uploadsSuccess:          uint64(s.uploads_success),
		uploadsFailed:           uint64(s.uploads_failed),
		bytesUploaded:           uint64(s.bytes_uploaded),
		uploadsSkippedUnchanged: uint64(s.uploads_skipped_unchanged),
		unsynced:                uint64(s.unsynced),
		oldestUnsynced:          fromNanos(s.oldest_unsynced_ns),
		databasesFailed:         uint64(s.databases_failed),
		databasesEmpty:          uint64(s.databases_empty),
		notDatabases:            uint64(s.not_databases),
		databasesGone:           uint64(s.databases_gone),
		walkFailures:            uint64(s.walk_failures),
		scanSeconds:             float64(s.scan_seconds),
		cycleSeconds:            float64(s.cycle_seconds),
		calls: apiCalls{
			put:    uint64(s.api_put),
			get:    uint64(s.api_get),
			list:   uint64(s.api_list),
			delete: uint64(s.api_delete),
		},
		targetUnreachable: s.target_unreachable != 0,
		owner:             ownerStatus(s.owner),
		lastSweep:         fromNanos(s.last_sweep_ns),
		sweep: sweepStats{
			objects: uint64(s.sweep_objects),
			bytes:   uint64(s.sweep_bytes),
			calls:   apiCalls{list: uint64(s.sweep_list), delete: uint64(s.sweep_delete)},
			seconds: float64(s.sweep_seconds),
			failed:  s.sweep_failed != 0,
		},
		objectsDeleted:      uint64(s.objects_deleted),
		databasesReconciled: uint64(s.databases_reconciled),
		uploadsAborted:      uint64(s.uploads_aborted),
		uploadsFirst:        uint64(s.uploads_first),
		stages: stageSeconds{
			Walk:       float64(s.walk_seconds),
			Track:      float64(s.track_seconds),
			Read:       float64(s.read_seconds),
			Encode:     float64(s.encode_seconds),
			UploadWait: float64(s.upload_wait_seconds),
			Commit:     float64(s.commit_seconds),
		},
	}, nil
}

func (c *core) failures() ([]failure, error) {
	if err := c.begin(); err != nil {
		return nil, err
	}
	defer c.end()
	c.buffers.Lock()
	defer c.buffers.Unlock()
	if c.failureBuf == nil {
		c.failureBuf = make([]C.struct_us_failure, C.US_FAILURES_MAX)
	}

	cerr := newCError()
	n := C.us_failures(c.ptr, &c.failureBuf[0], C.size_t(len(c.failureBuf)), &cerr)
	if n < 0 {
		return nil, coreError(n, &cerr)
	}
	failures := make([]failure, n)
	for i := range failures {
		f := &c.failureBuf[i]
		failures[i] = failure{
			path:    C.GoString(&f.path[0]),
			stage:   C.GoString(&f.stage[0]),
			message: C.GoString(&f.message[0]),
			cycles:  uint64(f.cycles),
			since:   fromNanos(f.since_ns),
		}
	}
	return failures, nil
}

// nextEvents takes the oldest batch of events out of the core's queue.
func (c *core) nextEvents() ([]event, error) {
	if err := c.begin(); err != nil {
		return nil, err
	}
	defer c.end()
	c.buffers.Lock()
	defer c.buffers.Unlock()
	if c.eventBuf == nil {
		c.eventBuf = make([]C.struct_us_event, eventBatch)
	}

	cerr := newCError()
	n := C.us_next_events(c.ptr, &c.eventBuf[0], C.size_t(len(c.eventBuf)), &cerr)
	if n < 0 {
		return nil, coreError(n, &cerr)
	}
	events := make([]event, n)
	for i := range events {
		e := &c.eventBuf[i]
		events[i] = event{
			kind:    eventKind(e.kind),
			path:    C.GoString(&e.path[0]),
			stage:   C.GoString(&e.stage[0]),
			message: C.GoString(&e.message[0]),
		}
	}
	return events, nil
}

func (c *core) setCredentials(creds credentials) error {
	if err := c.begin(); err != nil {
		return err
	}
	defer c.end()
	var a arena
	defer a.free()
	in := C.struct_us_credentials{
		struct_size:       C.sizeof_struct_us_credentials,
		access_key_id:     a.secret(creds.accessKeyID),
		secret_access_key: a.secret(creds.secretAccessKey),
		session_token:     a.secret(creds.sessionToken),
		expires_ns:        toNanos(creds.expires),
	}
	if a.err != nil {
		return a.err
	}

	cerr := newCError()
	if rc := C.us_set_credentials(c.ptr, &in, &cerr); rc < 0 {
		return coreError(rc, &cerr)
	}
	return nil
}

// plan walks the files; samples is how many paths it brings back at most.
func (c *core) plan(samples int) (planResult, error) {
	if err := c.begin(); err != nil {
		return planResult{}, err
	}
	defer c.end()
	c.owner.Lock()
	defer c.owner.Unlock()

	cerr := newCError()
	p := C.struct_us_plan{struct_size: C.sizeof_struct_us_plan}
	buf := make([]C.struct_us_sample, samples)
	var n C.size_t
	if rc := C.us_plan(c.ptr, &p, unsafe.SliceData(buf), C.size_t(len(buf)), &n, &cerr); rc < 0 {
		return planResult{}, coreError(rc, &cerr)
	}
	result := planResult{
		databases:     uint64(p.databases),
		databaseBytes: uint64(p.database_bytes),
		directories:   uint64(p.directories),
		withWAL:       uint64(p.with_wal),
		badNames:      uint64(p.bad_names),
		walkFailures:  uint64(p.walk_failures),
		prefix:        C.GoString(&p.prefix[0]),
		firstFailure:  C.GoString(&p.first_failure[0]),
		synced:        uint64(p.synced),
		changed:       uint64(p.changed),
		never:         uint64(p.never),
		lastBackup:    fromNanos(p.last_backup_ns),
		stateFound:    p.state_found == 1,
		stateHidden:   p.state_found == 2,
	}
	for i := range buf[:min(int(n), len(buf))] {
		s := &buf[i]
		result.samples = append(result.samples, sample{
			path:         C.GoString(&s.path[0]),
			key:          C.GoString(&s.key[0]),
			message:      C.GoString(&s.message[0]),
			databaseSize: uint64(s.database_len),
		})
	}
	return result, nil
}

func (c *core) restore(opt restoreOptions) (restoreResult, error) {
	if err := c.begin(); err != nil {
		return restoreResult{}, err
	}
	defer c.end()
	c.owner.Lock()
	defer c.owner.Unlock()
	var a arena
	defer a.free()
	in := C.struct_us_restore_options{
		struct_size:     C.sizeof_struct_us_restore_options,
		path:            a.str(opt.path),
		output_path:     a.str(opt.outputPath),
		timestamp_ns:    toNanos(opt.timestamp),
		integrity_check: C.uint32_t(opt.integrity),
	}
	if opt.force {
		in.flags |= C.US_RESTORE_FORCE
	}
	if opt.dryRun {
		in.flags |= C.US_RESTORE_DRY_RUN
	}
	if opt.ifNotExists {
		in.flags |= C.US_RESTORE_IF_DB_NOT_EXISTS
	}
	if a.err != nil {
		return restoreResult{}, a.err
	}

	cerr := newCError()
	r := C.struct_us_restore_result{struct_size: C.sizeof_struct_us_restore_result}
	if rc := C.us_restore(c.ptr, &in, &r, &cerr); rc < 0 {
		return restoreResult{}, coreError(rc, &cerr)
	}
	return restoreResult{
		skipped:      r.skipped != 0,
		key:          C.GoString(&r.key[0]),
		mode:         uint32(r.mode),
		pageSize:     uint32(r.page_size),
		objectSize:   uint64(r.object_len),
		databaseSize: uint64(r.database_len),
		snapshotTime: fromNanos(r.snapshot_ns),
	}, nil
}

// coreTask is a task of the core. It keeps the core's handle open until its close.
type coreTask struct {
	core *core
	ptr  *C.struct_us_task // nil: closed
	buf  []C.struct_us_row // allocated once, as it is large
}

func (c *core) startTask(opt taskOptions) (task, error) {
	if err := c.begin(); err != nil {
		return nil, err
	}
	t, err := c.newTask(opt)
	if err != nil {
		c.end()
		return nil, err
	}
	return t, nil
}

func (c *core) newTask(opt taskOptions) (*coreTask, error) {
	var a arena
	defer a.free()
	in := a.taskOptions(opt)
	if a.err != nil {
		return nil, a.err
	}
	var ptr *C.struct_us_task
	cerr := newCError()
	if rc := C.us_task_start(c.ptr, &in, &ptr, &cerr); rc < 0 {
		return nil, coreError(rc, &cerr)
	}
	return &coreTask{core: c, ptr: ptr, buf: make([]C.struct_us_row, rowBatch)}, nil
}

func (a *arena) taskOptions(opt taskOptions) C.struct_us_task_options {
	in := C.struct_us_task_options{
		struct_size:     C.sizeof_struct_us_task_options,
		kind:            C.uint32_t(opt.kind),
		integrity_check: C.uint32_t(opt.integrity),
		path:            a.str(opt.path),
		match:           a.str(opt.match),
		output_dir:      a.str(opt.outputDir),
		timestamp_ns:    toNanos(opt.timestamp),
		sample_count:    C.uint64_t(opt.sampleCount),
		older_than_ns:   toNanos(opt.olderThan),
		confirm_count:   C.uint64_t(opt.confirmCount),
	}
	for _, f := range []struct {
		set  bool
		flag C.uint32_t
	}{
		{opt.force, C.US_RESTORE_FORCE},
		{opt.dryRun, C.US_RESTORE_DRY_RUN},
		{opt.ifNotExists, C.US_RESTORE_IF_DB_NOT_EXISTS},
		{opt.fallback, C.US_TASK_FALLBACK},
		{opt.gone, C.US_TASK_GONE},
	} {
		if f.set {
			in.flags |= f.flag
		}
	}
	return in
}

func (t *coreTask) next(timeout time.Duration) ([]row, progress, error) {
	if t.ptr == nil {
		return nil, progress{}, errClosed
	}
	cerr := newCError()
	p := C.struct_us_progress{struct_size: C.sizeof_struct_us_progress}
	n := C.us_task_next(t.ptr, C.int32_t(timeout.Milliseconds()), &t.buf[0], C.size_t(len(t.buf)), &p, &cerr)
	if n < 0 {
		return nil, newProgress(&p), coreError(n, &cerr)
	}
	rows := make([]row, n)
	for i := range rows {
		rows[i] = newRow(&t.buf[i])
	}
	return rows, newProgress(&p), nil
}

// close cancels what is under way. Idempotent.
func (t *coreTask) close() {
	if t.ptr == nil {
		return
	}
	C.us_task_close(t.ptr)
	t.ptr = nil
	t.core.end()
}

func newRow(r *C.struct_us_row) row {
	return row{
		status:       rowStatus(r.status),
		code:         Code(r.code),
		path:         C.GoString(&r.path[0]),
		output:       C.GoString(&r.output[0]),
		key:          C.GoString(&r.key[0]),
		message:      strings.ToValidUTF8(C.GoString(&r.message[0]), "\uFFFD"),
		objects:      uint64(r.object_count),
		objectsSize:  uint64(r.objects_len),
		objectSize:   uint64(r.object_len),
		time:         fromNanos(r.time_ns),
		snapshotTime: fromNanos(r.snapshot_ns),
		databaseSize: uint64(r.database_len),
		mode:         uint32(r.mode),
		pageSize:     uint32(r.page_size),
	}
}

func newProgress(p *C.struct_us_progress) progress {
	return progress{
		finished:     p.finished != 0,
		listed:       p.listed != 0,
		confirmed:    p.confirmed != 0,
		total:        uint64(p.total_count),
		totalSize:    uint64(p.total_len),
		done:         uint64(p.done_count),
		doneSize:     uint64(p.done_len),
		failed:       uint64(p.failed_count),
		skipped:      uint64(p.skipped_count),
		databaseSize: uint64(p.database_len),
		objects:      uint64(p.object_count),
		removed:      uint64(p.removed_count),
		local:        uint64(p.local_count),
		walkFailures: uint64(p.walk_failures),
		ours:         uint64(p.ours_count),
		foreign:      uint64(p.foreign_count),
		calls: apiCalls{
			get:    uint64(p.api_get),
			list:   uint64(p.api_list),
			delete: uint64(p.api_delete),
		},
	}
}

// hosts returns the values of {{hostname}} for which the target has backups.
func (c *core) hosts() ([]string, error) {
	if err := c.begin(); err != nil {
		return nil, err
	}
	defer c.end()
	cerr := newCError()
	buf := make([]C.char, C.US_HOSTS_TEXT_LEN)
	n := C.us_hosts(c.ptr, &buf[0], C.size_t(len(buf)), &cerr)
	if n < 0 {
		return nil, coreError(n, &cerr)
	}
	names := make([]string, n)
	at := 0
	for i := range names {
		names[i] = C.GoString(&buf[at])
		at += len(names[i]) + 1
	}
	return names, nil
}

// checkCore checks what the core can check without touching disk or network.
func checkCore(cfg *Config) error {
	if abiError != nil {
		return abiError
	}
	var a arena
	defer a.free()
	options := a.options(cfg)
	if a.err != nil {
		return a.err
	}
	cerr := newCError()
	if rc := C.us_check(&options, &cerr); rc < 0 {
		return coreError(rc, &cerr)
	}
	return nil
}

// Matches reports whether the discovery pattern could match path, which is
// absolute and clean. It says nothing about whether there is such a file.
func (c *Config) Matches(path string) (bool, error) {
	if abiError != nil {
		return false, abiError
	}
	var a arena
	defer a.free()
	options := a.options(c)
	cpath := a.str(path)
	if a.err != nil {
		return false, a.err
	}
	cerr := newCError()
	rc := C.us_match(&options, cpath, &cerr)
	if rc < 0 {
		return false, coreError(rc, &cerr)
	}
	return rc != 0, nil
}

// Prefix returns the longest wildcard-free directory of the discovery pattern.
func (c *Config) Prefix() (string, error) {
	if abiError != nil {
		return "", abiError
	}
	var a arena
	defer a.free()
	options := a.options(c)
	if a.err != nil {
		return "", a.err
	}
	cerr := newCError()
	buf := make([]C.char, prefixCapacity)
	n := C.us_prefix(&options, &buf[0], C.size_t(len(buf)), &cerr)
	if n < 0 {
		return "", coreError(n, &cerr)
	}
	return C.GoStringN(&buf[0], C.int(n)), nil
}

func newCError() C.struct_us_error {
	return C.struct_us_error{struct_size: C.sizeof_struct_us_error}
}

// coreError turns a negative result and its details into an *Error.
func coreError(rc C.int32_t, cerr *C.struct_us_error) error {
	return &Error{
		Code:       Code(rc),
		Errno:      syscall.Errno(cerr.sys_errno),
		HTTPStatus: int(cerr.http_status),
		SQLiteCode: int(cerr.sqlite_rc),
		Retryable:  cerr.retryable != 0,
		Message:    strings.ToValidUTF8(C.GoString(&cerr.message[0]), "\uFFFD"),
	}
}

// fromNanos converts the core's times; 0 is the zero time.
func fromNanos(ns C.int64_t) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(ns)).UTC()
}

// toNanos converts for the core, which reads 0 as "none": times that 64 bits of
// nanoseconds cannot hold become the first or the last that they can.
func toNanos(t time.Time) C.int64_t {
	switch {
	case t.IsZero():
		return 0
	case t.Unix() < 0 || t.Unix() == 0 && t.Nanosecond() == 0:
		return 1
	case t.Unix() >= math.MaxInt64/int64(time.Second):
		return math.MaxInt64
	}
	return C.int64_t(t.UnixNano())
}

// arena owns the C strings of one call. Its zero value is ready.
type arena struct {
	strs []cstring
	err  error // the first string that C could not hold whole
}

type cstring struct {
	ptr    *C.char
	len    int
	secret bool
}

// str copies s; "" becomes NULL, which is "default" everywhere in the core.
func (a *arena) str(s string) *C.char { return a.add(s, false) }

// secret is str for what must not stay in freed memory.
func (a *arena) secret(s string) *C.char { return a.add(s, true) }

func (a *arena) add(s string, secret bool) *C.char {
	if s == "" {
		return nil
	}
	if strings.IndexByte(s, 0) >= 0 {
		if a.err == nil {
			a.err = &Error{Code: ErrArgument, Message: "a configured value contains a NUL byte"}
			if !secret {
				a.err = &Error{Code: ErrArgument, Message: fmt.Sprintf("%q contains a NUL byte", s)}
			}
		}
		return nil
	}
	ptr := C.CString(s)
	a.strs = append(a.strs, cstring{ptr, len(s), secret})
	return ptr
}

func (a *arena) free() {
	for _, s := range a.strs {
		if s.secret {
			clear(unsafe.Slice((*byte)(unsafe.Pointer(s.ptr)), s.len))
		}
		C.free(unsafe.Pointer(s.ptr))
	}
	a.strs = nil
}

// options maps cfg; the strings live until the arena is freed.
func (a *arena) options(cfg *Config) C.struct_us_options {
	o := C.struct_us_options{
		struct_size:        C.sizeof_struct_us_options,
		discovery_pattern:  a.str(cfg.DiscoveryPattern),
		hostname:           a.str(cfg.Hostname),
		state_dir:          a.str(cfg.StateDir),
		memory_limit_bytes: C.uint64_t(max(cfg.MemoryLimit, 0)),
		snapshot_window_s:  C.uint32_t(min(max(cfg.SnapshotWindow/time.Second, 0), math.MaxUint32)),
		retention_s:        C.uint64_t(math.Ceil(max(cfg.Retention, 0).Seconds())), // 0 would keep all

		max_upload_bandwidth: C.uint64_t(max(cfg.MaxUploadBandwidth, 0)),
		min_interval_ms:      C.uint64_t(max(cfg.MinInterval, 0).Milliseconds()),
	}
	if cfg.AllowAnyFilesystem {
		o.flags |= C.US_OPEN_ANY_FILESYSTEM
	}
	if s3 := cfg.S3; s3 != nil {
		o.target = C.US_TARGET_S3
		o.path = a.str(s3.Path)
		o.max_concurrent_uploads = uploads(s3.MaxConcurrentUploads)
		o.s3_endpoint = a.str(s3.Endpoint)
		o.s3_region = a.str(s3.Region)
		o.s3_bucket = a.str(s3.Bucket)
		o.s3_storage_class = a.str(s3.StorageClass)
		o.s3_sse = a.str(s3.SSE)
		o.s3_sse_kms_key_id = a.str(s3.SSEKMSKeyID)
		if s3.ForcePathStyle {
			o.flags |= C.US_OPEN_S3_PATH_STYLE
		}
		if s3.SkipVerify {
			o.flags |= C.US_OPEN_S3_SKIP_VERIFY
		}
	} else if file := cfg.File; file != nil {
		o.target = C.US_TARGET_FILE
		o.path = a.str(file.Path)
		o.max_concurrent_uploads = uploads(file.MaxConcurrentUploads)
		o.directory = a.str(file.Directory)
	}
	return o
}

// uploads passes numbers out of range on as such, so that the core names them.
func uploads(n int) C.uint32_t {
	if n < 0 || n > math.MaxUint32 {
		return math.MaxUint32
	}
	return C.uint32_t(n)
}
