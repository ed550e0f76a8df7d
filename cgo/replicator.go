package multidb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// closeMargin is what Close leaves of its caller's time for the last commit.
	closeMargin = time.Second

	// watchInterval is how often events are logged while a cycle runs.
	watchInterval = time.Second

	// sweepInterval is the core's: a sweep is due so long after the last.
	sweepInterval = 24 * time.Hour

	// acquireTimeout is how long Open waits for the target's answer.
	acquireTimeout = 5 * time.Second

	// releaseTimeout is how long Close waits until the target is given back.
	releaseTimeout = 2 * time.Second

	// finishInterval is how often Close repeats us_finish: one that comes just
	// before a cycle starts does not affect that cycle.
	finishInterval = 100 * time.Millisecond
)

// UltraSimpleReplicator backs up every database that the discovery pattern
// matches: one loop, every sync interval, scans everything and uploads what changed.
type UltraSimpleReplicator struct {
	cfg     *Config
	core    engine
	creds   *credentialSource // nil: the target needs none
	log     *slog.Logger
	version string
	sweep   bool // Once begins with a sweep
	started time.Time

	parent context.Context // Open's
	ctx    context.Context // the loop's: done when it should stop
	stop   context.CancelFunc
	detach func() bool // takes the core off the parent

	mu      sync.Mutex
	looping bool           // Start was called
	closing bool           // Close was called: nothing new starts
	active  sync.WaitGroup // Start's goroutine, and Once

	closed   chan struct{} // closed when Close is done
	closeErr error         // valid then

	cycleMu      sync.Mutex // held during a cycle; guards what follows
	cost         costWindow
	cycleStart   time.Time // of the last one
	overruns     uint64
	cyclesFailed uint64
	sawNothing   bool // the last cycle found no database

	lastFailed, lastWalkFailures uint64 // of the last cycle

	swept    coreStats // when the last sweep was over
	verified lastVerifyReader

	snapshot atomic.Pointer[snapshot]
}

// Options say how replicate was called.
type Options struct {
	Version          string
	Once             bool // Once will be called: nothing is deleted from the target,
	EnforceRetention bool // unless Once is to do what retention asks for, now
	Takeover         bool // the target is taken from whoever has it
}

// Open opens the fleet that cfg describes. It touches only the state directory and the
// target's owner object; nothing is read or uploaded before Start or Once. It fails if
// another replicator has the target. When ctx is done the loop stops.
func Open(ctx context.Context, cfg *Config, opt Options) (*UltraSimpleReplicator, error) {
	if opt.Once && !opt.EnforceRetention {
		keepAll := *cfg
		keepAll.Retention = 0
		cfg = &keepAll
	}
	core, err := openCore(cfg, false)
	if err != nil {
		return nil, fmt.Errorf("open multi_db: %w", err)
	}
	r := newReplicator(ctx, cfg, opt.Version, core)
	r.sweep = opt.EnforceRetention
	r.log.Info("replicating databases",
		"discovery-pattern", cfg.DiscoveryPattern,
		"target", targetName(cfg),
		"sync-interval", cfg.SyncInterval)
	r.refreshCredentials()
	if err := r.acquire(opt.Takeover); err != nil {
		return nil, errors.Join(err, r.Close(ctx, 0))
	}
	return r, nil
}

// acquire fails if another replicator has the target. What does not answer soon is
// asked again by every cycle.
func (r *UltraSimpleReplicator) acquire(takeover bool) error {
	err := r.core.acquire(takeover, acquireTimeout)
	if errors.Is(err, ErrOwned) {
		return fmt.Errorf("multi_db: %w", err)
	} else if err != nil {
		r.log.Warn("cannot ask the target whether another replicator has it", "error", err)
	}
	return nil
}

func newReplicator(ctx context.Context, cfg *Config, version string, core engine) *UltraSimpleReplicator {
	now := time.Now()
	r := &UltraSimpleReplicator{
		cfg:     cfg,
		core:    core,
		log:     logger(),
		version: version,
		started: now,
		parent:  ctx,
		closed:  make(chan struct{}),
		cost:    newCostWindow(now, cfg),
	}
	r.ctx, r.stop = context.WithCancel(ctx)
	// A cycle under way when the parent ends is finished early, not cut off.
	r.detach = context.AfterFunc(ctx, core.finish)
	if cfg.S3 != nil {
		r.creds = newCredentialSource(cfg.S3, core.setCredentials, r.log)
	}
	if dir, err := cfg.stateDirectory(); err == nil {
		r.verified.path = filepath.Join(dir, lastVerifyFile)
	}
	r.publish(nil)
	if s := r.snapshot.Load(); s != nil {
		r.swept = s.coreStats
	}
	return r
}

// logger is what upstream's parts log through.
func logger() *slog.Logger { return slog.Default().With("system", "multi-db") }

func (r *UltraSimpleReplicator) refreshCredentials() {
	if r.creds != nil {
		r.creds.refresh(r.ctx)
	}
}

// Start runs cycles in the background until Close, or until Open's context is done.
func (r *UltraSimpleReplicator) Start() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.looping || r.closing {
		return
	}
	r.looping = true
	r.core.carry(true)
	r.active.Go(r.loop)
}

// loop runs a cycle at once and then every sync interval, measured from start to
// start. A cycle that outlasts the interval is followed at once by the next. In
// between it renews credentials, as the core goes on renewing the owner object.
func (r *UltraSimpleReplicator) loop() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	renew := time.NewTicker(credentialsExpiryWindow / 2)
	defer renew.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-renew.C:
			r.refreshCredentials()
			continue
		case <-timer.C:
		}
		if r.ctx.Err() != nil {
			return
		}
		start := time.Now()
		if _, err := r.cycle(r.ctx); errors.Is(err, ErrCanceled) || errors.Is(err, errClosed) {
			return
		}
		elapsed := time.Since(start)
		timer.Reset(max(r.cfg.SyncInterval-elapsed, 0))
	}
}

// Once runs one cycle. It fails if anything that the pattern matches could not be
// backed up; what waits for min_interval is left to a later one. When ctx is done the cycle is cut off.
func (r *UltraSimpleReplicator) Once(ctx context.Context) error {
	r.mu.Lock()
	if r.closing {
		r.mu.Unlock()
		return errClosed
	}
	r.active.Add(1)
	r.mu.Unlock()
	defer r.active.Done()
	defer context.AfterFunc(ctx, r.core.cancel)()

	// One that is only due would be cut off with the process if it takes long.
	if r.sweep || time.Since(r.snapshot.Load().lastSweep) >= sweepInterval {
		r.core.sweep()
	}
	result, err := r.settle(ctx, r.ctx.Done())
	if err != nil {
		return fmt.Errorf("multi_db: %w", err)
	}
	if result.waiting > 0 {
		r.log.Info("changed databases wait for min_interval", "databases", result.waiting)
	}
	return r.resultError(result)
}

// settle runs a cycle after which nothing is left for the next one, as there is
// none. Two objects of a database may not be named after the same second, so a
// change within the second of the last upload is taken up in another cycle.
func (r *UltraSimpleReplicator) settle(ctx context.Context, stop <-chan struct{}) (cycleResult, error) {
	result, err := r.cycle(ctx)
	if s := r.snapshot.Load(); err != nil || result.interrupted || s.unsynced <= result.failed+result.waiting {
		return result, err
	}
	nextSecond := time.Now().Truncate(time.Second).Add(time.Second + time.Millisecond)
	select {
	case <-time.After(time.Until(nextSecond)):
		return r.cycle(ctx)
	case <-ctx.Done():
	case <-stop:
	}
	result.interrupted = true
	return result, nil
}

// resultError says what a completed cycle left undone, or nil.
func (r *UltraSimpleReplicator) resultError(result cycleResult) error {
	var faults []string
	if result.failed > 0 {
		faults = append(faults, fmt.Sprintf("%d of %d databases could not be backed up", result.failed, result.databases))
	}
	if s := r.snapshot.Load(); !result.interrupted && s.unsynced > result.failed+result.waiting {
		faults = append(faults, fmt.Sprintf("%d of %d databases are not backed up yet", s.unsynced-result.failed-result.waiting, result.databases))
	}
	if result.walkFailures > 0 {
		faults = append(faults, walkFailuresText(result.walkFailures))
	}
	if result.interrupted {
		faults = append(faults, "stopped before everything was looked at")
	}
	if s := r.snapshot.Load().sweep; r.sweep && (s.failed || s.seconds == 0) { // or there was none
		faults = append(faults, "retention could not be enforced: the sweep of the target did not reach its end")
	}
	if len(faults) == 0 {
		return nil
	}
	err := fmt.Errorf("multi_db: %s", strings.Join(faults, ", "))
	if failures := r.snapshot.Load().failures; len(failures) > 0 {
		f := failures[0]
		err = fmt.Errorf("%w; for one, %s: %s: %s", err, f.path, f.stage, f.message)
	}
	return err
}

// cycle runs one cycle and tells about it.
func (r *UltraSimpleReplicator) cycle(ctx context.Context) (cycleResult, error) {
	r.cycleMu.Lock()
	defer r.cycleMu.Unlock()
	start := time.Now()
	if r.creds != nil {
		r.creds.refresh(ctx)
	}
	endWatch := r.watch(ctx)
	r.cycleStart = time.Now()
	result, err := r.core.cycle()
	endWatch()
	r.logEvents()
	if time.Since(start) > r.cfg.SyncInterval {
		r.overruns++
	}
	if err != nil {
		r.cyclesFailed++
	} else if r.creds != nil && result.failed == 0 {
		r.creds.accepted()
	}
	r.publish(err)
	r.logSweep()
	r.logCycle(result, err)
	return result, err
}

// watch logs events and renews credentials while a cycle runs: one that uploads
// everything for the first time can last for hours.
func (r *UltraSimpleReplicator) watch(ctx context.Context) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		ticker := time.NewTicker(watchInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			r.logEvents()
			if r.creds != nil {
				r.creds.refreshDuringCycle(ctx)
			}
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

// publish takes the snapshot that /stats and /metrics answer from. cycleErr is why
// the cycle that has just ended has no result, if it has none.
func (r *UltraSimpleReplicator) publish(cycleErr error) {
	stats, err := r.core.stats()
	if errors.Is(err, errClosed) {
		return
	} else if err != nil {
		r.log.Error("cannot read stats", "error", err)
		return
	}
	failures, err := r.core.failures()
	if err != nil {
		r.log.Error("cannot read failures", "error", err)
	}
	for _, f := range failures {
		if r.creds != nil {
			r.creds.heed(f.message)
		}
	}
	if stats.cycles > 0 {
		r.cost.add(r.cycleStart, stats)
	}
	s := &snapshot{
		coreStats:     stats,
		failures:      failures,
		cycleOverruns: r.overruns,
		cyclesFailed:  r.cyclesFailed,
		lastVerify:    r.verified.read(),
		target:        targetName(r.cfg),
		version:       r.version,
		started:       r.started,
	}
	if cycleErr != nil {
		s.cycleError = cycleErr.Error()
	}
	if r.cfg.S3 != nil {
		s.costUSDPerDay, s.putsPerDay = r.cost.usdPerDay(), r.cost.putsPerDay()
		s.sweepCostUSD = stats.sweep.calls.usd()
	}
	r.snapshot.Store(s)
	if cycleErr == nil && stats.cycles > 0 {
		// A warning each cycle would say less than what else fails in a state
		// directory that cannot be written.
		_ = writeReport(r.cfg, lastCycleFile, newLastCycle(s))
	}
}

// logSweep writes a line about a sweep that has come to its end.
func (r *UltraSimpleReplicator) logSweep() {
	s, before := r.snapshot.Load().coreStats, r.swept
	if s.lastSweep.Equal(before.lastSweep) {
		return
	}
	r.swept = s
	r.log.Info("sweep",
		"objects", s.sweep.objects,
		"bytes", s.sweep.bytes,
		"deleted", s.objectsDeleted-before.objectsDeleted,
		"reconciled", s.databasesReconciled-before.databasesReconciled,
		"aborted", s.uploadsAborted-before.uploadsAborted,
		"list", s.sweep.calls.list,
		"delete", s.sweep.calls.delete,
		"seconds", roundSeconds(s.sweep.seconds))
}

// logCycle writes a line about a cycle that did something.
func (r *UltraSimpleReplicator) logCycle(result cycleResult, err error) {
	if err != nil {
		if !errors.Is(err, ErrCanceled) {
			r.log.Error("cycle failed", "error", err)
		}
		return
	}
	if result.databases == 0 && !r.sawNothing && !result.interrupted {
		r.log.Warn("no database matches the discovery pattern", "discovery-pattern", r.cfg.DiscoveryPattern)
	}
	r.sawNothing = result.databases == 0

	level := slog.LevelDebug
	// What failed before and fails again is in /stats; the log had it once.
	news := result.failed > 0 && result.failed != r.lastFailed ||
		result.walkFailures > 0 && result.walkFailures != r.lastWalkFailures
	r.lastFailed, r.lastWalkFailures = result.failed, result.walkFailures
	if news || result.uploaded+result.unchanged+result.gone > 0 || result.interrupted {
		level = slog.LevelInfo
	}
	attrs := []any{
		"databases", result.databases,
		"changed", result.changed,
		"uploaded", result.uploaded,
		"unchanged", result.unchanged,
		"failed", result.failed,
		"waiting", result.waiting,
		"walk-failures", result.walkFailures,
		"gone", result.gone,
		"bytes", result.bytesUploaded,
		"scan-seconds", roundSeconds(result.scanSeconds),
		"seconds", roundSeconds(result.cycleSeconds),
	}
	if result.interrupted {
		attrs = append(attrs, "interrupted", true)
	}
	r.log.Log(context.Background(), level, "cycle", attrs...)
}

func roundSeconds(s float64) float64 {
	return time.Duration(s * float64(time.Second)).Round(time.Millisecond).Seconds()
}

// logEvents empties the core's queue of events into the log.
func (r *UltraSimpleReplicator) logEvents() {
	for {
		events, err := r.core.nextEvents()
		if err != nil && !errors.Is(err, errClosed) {
			r.log.Error("cannot read events", "error", err)
		}
		if err != nil || len(events) == 0 {
			return
		}
		for _, e := range events {
			r.logEvent(e)
		}
	}
}

func (r *UltraSimpleReplicator) logEvent(e event) {
	if r.creds != nil {
		r.creds.heed(e.message)
	}
	switch e.kind {
	case eventFailed:
		r.log.Warn("database cannot be backed up", "path", e.path, "stage", e.stage, "error", e.message)
	case eventRecovered:
		r.log.Info("database is backed up again", "path", e.path)
	case eventNotDatabase:
		r.log.Warn("file is not a database, not backed up", "path", e.path, "error", e.message)
	case eventStateReset:
		r.log.Warn("starting with a new state file", "reason", e.message)
	case eventUnreachable:
		r.log.Warn("nothing more is uploaded in this cycle", "error", e.message)
	case eventWalkFailed:
		r.log.Warn("cannot look at file or directory", "path", e.path, "error", e.message)
	default:
		attrs := []any{"message", e.message}
		if e.path != "" {
			attrs = append(attrs, "path", e.path)
		}
		r.log.Warn("warning", attrs...)
	}
}

// Close stops the loop, lets what is in flight finish and, if Start was called, runs
// one last cycle, all within shutdownSyncTimeout (0: no last cycle, and what is in flight
// is cut off at once). Then it gives the target back. It returns before ctx's deadline even if the target hangs. Idempotent.
func (r *UltraSimpleReplicator) Close(ctx context.Context, shutdownSyncTimeout time.Duration) error {
	r.mu.Lock()
	first := !r.closing
	r.closing = true
	r.mu.Unlock()
	if first {
		r.closeErr = r.close(ctx, shutdownSyncTimeout)
		current.CompareAndSwap(r, nil)
		close(r.closed)
	}
	select {
	case <-r.closed:
		return r.closeErr
	case <-ctx.Done():
		return fmt.Errorf("multi_db: close: %w", ctx.Err())
	}
}

func (r *UltraSimpleReplicator) close(ctx context.Context, shutdownSyncTimeout time.Duration) error {
	aborted := r.parent.Err() != nil
	r.mu.Lock()
	looping := r.looping
	r.mu.Unlock()
	r.stop()
	r.core.carry(false) // the last cycle waits for all

	marginCtx, cancelMargin := withMargin(ctx, closeMargin)
	defer cancelMargin()
	workCtx, cancel := context.WithTimeout(marginCtx, max(shutdownSyncTimeout, finishInterval))
	defer cancel()
	var err error
	idle := r.finish(workCtx)
	if idle && looping && !aborted && shutdownSyncTimeout > 0 {
		err = r.lastCycle(workCtx, shutdownSyncTimeout)
	} else if !idle && looping && !aborted && shutdownSyncTimeout > 0 {
		r.log.Warn("cycle was cut off, the next start continues it", "shutdown-sync-timeout", shutdownSyncTimeout)
		err = errors.New("multi_db: the last cycle was cut off")
	}
	r.detach()
	if idle {
		r.release(ctx)
	}
	return errors.Join(err, r.closeCore(ctx))
}

// withMargin ends earlier than ctx, by margin or by a quarter of the time left.
func withMargin(ctx context.Context, margin time.Duration) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	margin = min(margin, time.Until(deadline)/4)
	return context.WithDeadline(ctx, deadline.Add(-margin))
}

// finish waits until no cycle is running, and reports whether it has seen that.
func (r *UltraSimpleReplicator) finish(ctx context.Context) bool {
	idle := make(chan struct{})
	go func() {
		r.active.Wait()
		close(idle)
	}()
	ticker := time.NewTicker(finishInterval)
	defer ticker.Stop()
	for {
		r.core.finish()
		select {
		case <-idle:
			return ctx.Err() == nil
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
	}
}

// lastCycle uploads what has changed since the last cycle, and what waits for
// min_interval, while there is time.
func (r *UltraSimpleReplicator) lastCycle(ctx context.Context, timeout time.Duration) error {
	defer context.AfterFunc(ctx, r.core.cancel)()

	r.core.flush()
	_, err := r.settle(ctx, nil)
	if errors.Is(err, ErrCanceled) {
		r.log.Warn("last cycle was cut off, the next start continues it", "shutdown-sync-timeout", timeout)
		return fmt.Errorf("multi_db: last cycle was cut off: %w", err)
	} else if err != nil {
		return fmt.Errorf("multi_db: last cycle: %w", err)
	}
	return nil
}

// release gives the target back, so that another machine need not wait until this one
// counts as gone.
func (r *UltraSimpleReplicator) release(ctx context.Context) {
	timeout := releaseTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = max(min(timeout, time.Until(deadline)/2), 0)
	}
	if err := r.core.release(timeout); err != nil && !errors.Is(err, ErrCanceled) {
		r.log.Debug("the target was not given back", "error", err)
	}
}

// closeCore cancels what is still under way, joins it and closes the handle.
func (r *UltraSimpleReplicator) closeCore(ctx context.Context) error {
	r.core.cancel()
	closed := make(chan struct{})
	go func() {
		r.core.close()
		r.active.Wait()
		close(closed)
	}()
	select {
	case <-closed:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("multi_db: close: %w", ctx.Err())
	}
}

// RefuseDB returns an error if the pattern matches path: one process must not open a
// database twice, because closing one of the files drops the locks of the other. Any
// other database is from now on never opened by multi_db, whatever names it gets.
func (r *UltraSimpleReplicator) RefuseDB(path string) error {
	managed, err := r.cfg.manages(path)
	if err != nil {
		return fmt.Errorf("multi_db: look for database %s: %w", path, err)
	} else if managed {
		return fmt.Errorf("database %s is managed by multi_db (discovery_pattern %q); it cannot be replicated on its own as well",
			path, r.cfg.DiscoveryPattern)
	}
	if path, err = filepath.Abs(path); err != nil {
		return err
	}
	return r.core.exclude(path)
}

// manages reports whether the pattern could match the file that path names.
func (c *Config) manages(path string) (bool, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return false, err
	}
	prefix, err := c.Prefix()
	if err != nil {
		return false, err
	}
	o := &overlap{config: c, prefix: prefix}
	for _, name := range o.names(path) {
		if matches, err := c.Matches(name); err != nil || matches {
			return matches, err
		}
	}
	return false, nil
}

// linksMax bounds how many dangling links realPath follows, as the kernel does.
const linksMax = 40

// realPath resolves links, those to a file that does not exist yet included, as
// opening it would create it there.
func realPath(path string) (string, error) {
	for range linksMax {
		real, err := filepath.EvalSymlinks(path)
		if !errors.Is(err, fs.ErrNotExist) || path == filepath.Dir(path) {
			return real, err
		}
		dir, err := realPath(filepath.Dir(path))
		if err != nil {
			return "", err
		}
		path = filepath.Join(dir, filepath.Base(path))
		link, err := os.Readlink(path)
		if err != nil {
			return path, nil // nothing there
		}
		if path = link; !filepath.IsAbs(link) {
			path = filepath.Join(dir, link)
		}
	}
	return "", &fs.PathError{Op: "resolve", Path: path, Err: syscall.ELOOP}
}

// targetName describes the target for people. It holds no secrets.
func targetName(cfg *Config) string {
	switch {
	case cfg.S3 != nil:
		name := "s3://" + cfg.S3.Bucket + "/" + strings.TrimPrefix(cfg.S3.Path, "/")
		if cfg.S3.Endpoint != "" {
			name += " @" + withoutUser(cfg.S3.Endpoint)
		}
		return name
	case cfg.File != nil:
		return "file://" + strings.TrimSuffix(cfg.File.Directory, "/") + "/" + strings.TrimPrefix(cfg.File.Path, "/")
	}
	return ""
}

// withoutUser drops user name and password from an endpoint.
func withoutUser(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil {
		return "(invalid)"
	}
	u.User = nil
	return u.String()
}

// replicaType names the target as upstream's replica types are named.
func replicaType(cfg *Config) string {
	if cfg.S3 != nil {
		return "s3"
	}
	return "file"
}
