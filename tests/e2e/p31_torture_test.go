package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Tenants in all journal modes, killed at any moment; a replicator that is killed at
// any moment; a server that fails and is killed. Every object that is ever sent is
// held against what the tenants committed when.
//
// SEED (1), DURATION (20s: the short run), WRITERS (processes), DATABASES. What each
// database is used for is in tenantKinds, how an image proves itself in
// p31_torture_writer_test.go, and what is demanded:
//
//	torn    an object that does not decode, fails integrity_check, is no state that its
//	        tenant committed, or is not the one of its snapshot time
//	lost    an object replaced or deleted that must not be; a database that does not come
//	        back as SQLite itself sees it, once writers and kills have ended
//	stale   an image older than the scan that it was made in, or a target that has neither
//	        a commit two whole cycles later nor counts the database as failed
//	back    an object older than one of an earlier name
//
// Journal modes MEMORY and OFF lose the database itself in a kill, by design of SQLite:
// their tenants are stopped in good order only.
func TestTorture(t *testing.T) {
	// Not in parallel: it loads the machine, and its neighbours have limits of their own.
	m := newTorture(t)
	m.begin()
	end := time.Now().Add(m.duration)
	for i := 0; time.Now().Before(end) && !m.failed(); i++ {
		m.phase(torments[i%len(torments)], min(m.phaseLen, time.Until(end)))
		if m.isLong {
			say("%v to go: %s", max(0, time.Until(end).Round(time.Second)), m.totals())
		}
	}
	m.finish()
}

// say prints what tests/run.sh shows.
func say(format string, args ...any) { fmt.Printf("torture: "+format+"\n", args...) }

// torment is what a phase is like.
type torment struct {
	file    bool // the target is a directory
	window  string
	faults  float64 // part of the requests
	kinds   []faultKind
	outages bool // the server is killed, too
	memory  string
}

// Those faults that do not hold a cycle up for half a minute.
var quickFaults = slices.DeleteFunc(slices.Clone(allFaults), func(k faultKind) bool { return slices.Contains(slowFaults, k) })

var torments = []torment{
	{window: "0s", memory: "16MB"},
	{window: "0s", faults: 0.15, kinds: quickFaults},
	{window: "3s"},
	{file: true, window: "0s", memory: "16MB"},
	{window: "0s", outages: true},
	{window: "1h", faults: 0.3, kinds: quickFaults},
	{file: true, window: "3s"},
	{window: "3s", faults: 0.05, kinds: allFaults, outages: true, memory: "16MB"},
}

const (
	retentionShort = 4 * time.Second // of what is deleted between two lives of the replicator
	statsInterval  = 60 * time.Millisecond
)

type torture struct {
	t        *testing.T
	seed     uint64
	duration time.Duration
	phaseLen time.Duration
	isLong   bool
	dice     *rand.Rand
	dir      string // everything, and the evidence
	root     string
	paths    []string
	port     int
	ledger   *ledger
	auditor  *auditor
	server   *s3server
	proxy    *proxy
	tee      *tee
	file     *directory
	neighbor *watcher // of the databases' directories
	strangers
	tenants     []*tenantProcess
	tenantsGone sync.WaitGroup
	stopTenants chan struct{}
	endTenants  func() // closes it, and waits

	kills, terms, sweeps, outages int
	tenantKills, tenantEnds       atomic.Int64
	restored, undone              int
}

// strangers are files beside a database that SQLite did not make.
type strangers struct {
	mu    sync.Mutex
	names []string
}

var ofSQLite = regexp.MustCompile(`^t\d+\.db(-wal|-shm|-journal|-mj[0-9A-F]{9})?$`)

func (s *strangers) see(dir, name string, _ uint32) {
	if !ofSQLite.MatchString(name) {
		s.mu.Lock()
		s.names = append(s.names, filepath.Join(dir, name))
		s.mu.Unlock()
	}
}

func newTorture(t *testing.T) *torture {
	t.Helper()
	m := &torture{t: t, seed: uint64(envInt("SEED", 1)), duration: 20 * time.Second, phaseLen: 2 * time.Second, stopTenants: make(chan struct{})}
	writers, databases := 5, len(tenantKinds)
	if d := os.Getenv("DURATION"); d != "" {
		m.duration = must1[time.Duration](t)(time.ParseDuration(d))
		m.isLong = m.duration >= 2*time.Minute
		m.phaseLen = min(20*time.Second, max(m.phaseLen, m.duration/time.Duration(len(torments))))
		writers, databases = 8, 2*len(tenantKinds)
	}
	writers, databases = max(2, envInt("WRITERS", writers)), envInt("DATABASES", databases)
	m.endTenants = sync.OnceFunc(func() { close(m.stopTenants); m.tenantsGone.Wait() })
	m.dice = rand.New(rand.NewPCG(m.seed, 0))
	m.dir = must1[string](t)(os.MkdirTemp("", "torture-"))
	m.root = filepath.Join(m.dir, "data")
	for _, d := range []string{"data", "side", "logs", "s3", "file", "evidence", "restored"} {
		must(t, os.MkdirAll(filepath.Join(m.dir, d), 0o755))
	}
	m.ledger = newLedger(databases)
	m.deal(writers, databases)
	m.auditor = newAuditor(t, m.ledger, filepath.Join(m.dir, "evidence"), m.paths)
	say("seed %d, %v, %d writers, %d databases, in %s", m.seed, m.duration, writers, databases, m.dir)
	t.Cleanup(func() {
		m.endTenants()
		if t.Failed() {
			say("evidence is in %s; again: make torture SEED=%d DURATION=%v WRITERS=%d DATABASES=%d", m.dir, m.seed, m.duration, writers, databases)
		} else if err := os.RemoveAll(m.dir); err != nil {
			t.Error(err)
		}
	})
	return m
}

// deal gives the databases their kinds, and to the writers.
func (m *torture) deal(writers, databases int) {
	for i := range databases {
		dir := filepath.Join(m.root, fmt.Sprintf("p%d/databases/d/branches/b/tenants", i%3))
		must(m.t, os.MkdirAll(dir, 0o755))
		m.paths = append(m.paths, filepath.Join(dir, fmt.Sprintf("t%d.db", i)))
	}
	for range writers {
		m.tenants = append(m.tenants, &tenantProcess{m: m})
	}
	m.tenants[0].immortal = true
	next := 0
	for i := 0; i < databases; i++ {
		s := tenantSlot{ID: i, Kind: i % len(tenantKinds), Path: m.paths[i]}
		kind := tenantKinds[s.Kind]
		if kind.pair && i+1 < databases {
			i++
			s.Peer = &tenantSlot{ID: i, Path: m.paths[i]}
		} else if kind.pair {
			s.Kind++
		}
		if kind.immortal {
			m.tenants[0].slots = append(m.tenants[0].slots, s)
			continue
		}
		m.ledger.books[i].shared = kind.shared
		for range map[bool]int{false: 1, true: min(2, writers-1)}[kind.shared] {
			w := m.tenants[1+next%(writers-1)]
			w.slots = append(w.slots, s)
			next++
		}
	}
}

func (m *torture) begin() {
	t := m.t
	m.server = startS3In(t, filepath.Join(m.dir, "s3"))
	slots := map[string]int{}
	dirs := map[string]bool{}
	for i, p := range m.paths {
		slots[keyOf(m.root, p)] = i
		dirs[filepath.Dir(p)] = true
	}
	m.tee = startTee(t, &intake{shelf: newShelf(m.auditor, "s3"), slots: slots}, m.server.hostPort())
	m.proxy = startProxy(t, m.tee.listener.Addr().String(), nil)
	m.file = watchTarget(t, &intake{shelf: newShelf(m.auditor, "file"), slots: slots}, filepath.Join(m.dir, "file"))
	m.neighbor = watchDirs(t, slices.Collect(maps.Keys(dirs)), unix.IN_CREATE|unix.IN_MOVED_TO, m.see)
	for i, p := range m.tenants {
		p.number, p.dice = i, rand.New(rand.NewPCG(m.seed, uint64(i)+1))
		m.tenantsGone.Go(p.live)
	}
}

// ------------------------------------------------------------------- tenants

// tenantProcess is one writer process after the other, with the same databases.
type tenantProcess struct {
	m        *torture
	number   int
	immortal bool
	slots    []tenantSlot
	dice     *rand.Rand
	lives    int
}

func (p *tenantProcess) ms(from, to int) time.Duration {
	return time.Duration(from+p.dice.IntN(to-from)) * time.Millisecond
}

// pause is false when the tenants are to end.
func (p *tenantProcess) pause(d time.Duration) bool {
	select {
	case <-p.m.stopTenants:
		return false
	case <-time.After(d):
		return true
	}
}

func (p *tenantProcess) live() {
	for more := true; more; {
		var err error
		if more, err = p.once(); err != nil {
			p.m.t.Errorf("writer %d: %v", p.number, err)
			return
		}
		if more {
			// Sometimes long enough for what it left behind to be backed up.
			more = p.pause(p.ms(0, pick(p.dice, 200, 1000, 4000)))
		}
	}
}

// once is one process from its start to its end. The last one of each second tenant
// is killed, too, and what it leaves stays as it is.
func (p *tenantProcess) once() (more bool, err error) {
	p.lives++
	log := filepath.Join(p.m.dir, "logs", fmt.Sprintf("tenant-%d-%d", p.number, p.lives))
	if err := p.m.ledger.follow(log); err != nil {
		return false, err
	}
	defer p.m.ledger.finish(log)
	cmd, in, err := p.start(log)
	if err != nil {
		return false, err
	}
	kill := !p.immortal && p.dice.IntN(4) > 0
	if more = p.pause(p.ms(500, pick(p.dice, 2000, 6000, 10000))); !more {
		kill = !p.immortal && p.number%2 == 1
	}
	if kill {
		p.m.tenantKills.Add(1)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return more, nil
	}
	p.m.tenantEnds.Add(1)
	in.Close()
	late := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Signal(syscall.SIGQUIT) })
	defer late.Stop()
	if err := cmd.Wait(); err != nil {
		return false, fmt.Errorf("life %d: %w", p.lives, err)
	}
	return more, nil
}

func (p *tenantProcess) start(log string) (*exec.Cmd, io.Closer, error) {
	order := tenantOrder{Log: log, Side: filepath.Join(p.m.dir, "side"), Seed: p.dice.Uint64(), Pause: 60}
	for _, s := range p.slots {
		s.N = p.m.ledger.top(s.ID)
		if s.Peer != nil {
			peer := *s.Peer
			peer.N = p.m.ledger.top(peer.ID)
			s.Peer = &peer
		}
		order.Slots = append(order.Slots, s)
	}
	text, err := json.Marshal(order)
	if err != nil {
		return nil, nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "E2E_TENANTS="+string(text), "GOMAXPROCS=2")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	return cmd, in, startCommand(cmd)
}

// ---------------------------------------------------------------- replicator

func (m *torture) ms(from, to int) time.Duration {
	return time.Duration(from+m.dice.IntN(to-from)) * time.Millisecond
}

func (m *torture) shelf(file bool) *shelf {
	if file {
		return m.file.shelf
	}
	return m.tee.shelf
}

// settings are those of a torment; the state is the target's.
func (m *torture) settings(c torment, endpoint string) settings {
	s := settings{pattern: seedPattern(m.root), interval: "1s", top: []string{"shutdown-sync-timeout: 25s"}}
	s.keys = []string{"snapshot_window: " + c.window, fmt.Sprintf("retention: %v", retentionShort)}
	if c.memory != "" {
		s.keys = append(s.keys, "memory_limit: "+c.memory)
	}
	if c.file {
		s.target = fileTarget(filepath.Join(m.dir, "file"))
		s.keys = append(s.keys, "state_dir: "+filepath.Join(m.dir, "state-file"))
	} else {
		s.target = m.server.target(endpoint, "max_concurrent_uploads: 8")
		s.keys = append(s.keys, "state_dir: "+filepath.Join(m.dir, "state-s3"))
	}
	return s
}

// phase lets the replicator live and die until the time is over.
func (m *torture) phase(c torment, d time.Duration) {
	end := time.Now().Add(d)
	m.port = freePort(m.t)
	config := m.settings(c, m.proxy.url()).write(m.t, m.port)
	m.tee.window.Store(c.window != "0s")
	m.file.window.Store(c.window != "0s")
	if c.faults > 0 {
		m.proxy.chaos(m.dice.Int64(), c.faults, c.kinds...)
	}
	for time.Now().Before(end) && !m.t.Failed() {
		m.life(c, config, end)
		if m.dice.IntN(6) == 0 {
			m.enforceRetention(c, config)
		}
	}
	m.proxy.calm()
	m.settle(c)
	m.sample(c)
}

// settle waits until all that was sent is judged.
func (m *torture) settle(c torment) {
	waitFor(m.t, time.Minute, "the requests that are under way", func() bool { return m.tee.active.Load() == 0 })
	if c.file {
		m.file.idle()
	}
	m.shelf(c.file).settle()
}

// lifetime is two seconds on average, and now and then long enough for several cycles.
func (m *torture) lifetime() time.Duration {
	return pick(m.dice, m.ms(0, 800), m.ms(100, 2000), m.ms(100, 2000), m.ms(300, 3000), m.ms(1000, 4000), m.ms(4000, 9000))
}

func (m *torture) start(config string, args ...string) (*exec.Cmd, chan struct{}) {
	m.t.Helper()
	out := must1[*os.File](m.t)(os.OpenFile(filepath.Join(m.dir, "logs/replicate.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644))
	defer out.Close()
	cmd := command(append([]string{"replicate", "-config", config}, args...))
	cmd.Stdout, cmd.Stderr = out, out
	fmt.Fprintf(out, "==== %s replicate %v\n", time.Now().Format(time.RFC3339Nano), args)
	must(m.t, startCommand(cmd))
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	return cmd, exited
}

// life is one life of the replicator.
func (m *torture) life(c torment, config string, end time.Time) {
	s := m.shelf(c.file)
	s.began(time.Now().UnixNano())
	cmd, exited := m.start(config)
	polled := make(chan struct{})
	go func() {
		defer close(polled)
		m.watchStats(s, c, exited)
	}()
	rest := min(m.lifetime(), time.Until(end)+time.Second)
	if c.outages && m.dice.IntN(2) == 0 {
		wait := time.Duration(m.dice.Int64N(int64(rest) + 1))
		rest -= wait
		m.rest(exited, wait)
		m.server.kill()
		m.outages++
		m.rest(exited, m.ms(50, 1500))
		m.server.start()
	}
	m.rest(exited, rest)
	select {
	case <-exited:
		m.t.Errorf("replicate ended by itself: %v, see logs/replicate.log", cmd.ProcessState)
	default:
	}
	if m.dice.IntN(12) > 0 {
		m.kills++
		_ = cmd.Process.Kill()
	} else {
		m.terminate(c, cmd, exited)
	}
	<-exited
	<-polled
}

// terminate is SIGTERM; the last cycle may be cut off only where the target fails.
func (m *torture) terminate(c torment, cmd *exec.Cmd, exited chan struct{}) {
	m.terms++
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if !m.rest(exited, 40*time.Second) {
		m.t.Errorf("replicate runs 40 s after SIGTERM")
		_ = cmd.Process.Signal(syscall.SIGQUIT)
		return
	}
	if code := cmd.ProcessState.ExitCode(); code != 0 && c.faults == 0 && !c.outages {
		// A signal in the first moments comes before there is a handler.
		if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() {
			m.t.Errorf("replicate after SIGTERM: exit %d", code)
		}
	}
}

// rest reports whether the process has ended meanwhile.
func (m *torture) rest(exited chan struct{}, d time.Duration) bool {
	select {
	case <-exited:
		return true
	case <-time.After(d):
		return false
	}
}

// enforceRetention runs one cycle that deletes, and kills each second one.
func (m *torture) enforceRetention(c torment, config string) {
	m.shelf(c.file).began(time.Now().UnixNano())
	cmd, exited := m.start(config, "-once", "-enforce-retention")
	m.sweeps++
	if m.dice.IntN(2) == 0 {
		m.rest(exited, m.ms(100, 1500))
		m.kills++
		_ = cmd.Process.Kill()
	}
	if !m.rest(exited, 2*time.Minute) {
		m.t.Errorf("replicate -once runs for two minutes")
		_ = cmd.Process.Signal(syscall.SIGQUIT)
	}
	<-exited
}

// watchStats takes down what /stats says after each cycle.
func (m *torture) watchStats(s *shelf, c torment, exited chan struct{}) {
	d := &daemon{port: m.port}
	target := m.proxy.url()
	if c.file {
		target = m.dir
	}
	byPath := m.auditor.byPath
	tick := time.NewTicker(statsInterval)
	defer tick.Stop()
	cycles := 0
	for {
		select {
		case <-exited:
			return
		case <-tick.C:
		}
		st, err := d.tryStats()
		if err != nil || st.Cycles <= cycles || st.LastScan == nil || !strings.Contains(string(st.Target), target) {
			continue // not there yet, nothing new, or somebody else's: between two lives the port is free
		}
		cycles = st.Cycles
		scan, err := time.Parse(time.RFC3339Nano, *st.LastScan)
		if err != nil {
			m.t.Errorf("/stats: last_scan %q: %v", *st.LastScan, err)
			continue
		}
		l := look{at: time.Now().UnixNano(), named: map[int]bool{}, unnamed: st.DatabasesFailed - len(st.Failures)}
		for _, f := range st.Failures {
			if slot, ok := byPath[f.Path]; ok {
				l.named[slot] = true
			}
		}
		s.cycled(scan.UnixNano(), l)
	}
}

// sample restores some databases as a user would: each has to be as new as the newest
// object that the target surely has.
func (m *torture) sample(c torment) {
	config := m.settings(c, m.server.url()).write(m.t, 0)
	for range map[bool]int{false: 1, true: 3}[m.isLong] {
		slot := m.dice.IntN(len(m.paths))
		name, newest := m.shelf(c.file).newestName(slot)
		if newest == nil {
			continue
		}
		out := filepath.Join(m.dir, "restored", fmt.Sprintf("sample-%d.db", m.restored))
		r := tryRestore(m.t, config, m.paths[slot], out)
		m.restored++
		if r.code != 0 {
			m.auditor.note(&m.auditor.lost, "restore of slot %d: exit %d: %s", slot, r.code, r.all())
			continue
		}
		s, err := examine(out+".copy", must1[[]byte](m.t)(os.ReadFile(out)))
		if err != nil {
			m.auditor.note(&m.auditor.torn, "restore of slot %d: %v", slot, err)
		} else if s.n < newest.body.n {
			m.auditor.note(&m.auditor.lost, "restore of slot %d gives commit %d, but %s has commit %d", slot, s.n, name, newest.body.n)
		}
		must(m.t, os.Remove(out))
	}
}

// --------------------------------------------------------------------- the end

func (m *torture) failed() bool {
	a := m.auditor
	a.mu.Lock()
	defer a.mu.Unlock()
	m.ledger.mu.Lock()
	defer m.ledger.mu.Unlock()
	return m.t.Failed() || len(a.torn)+len(a.lost)+len(a.stale)+len(a.back)+len(m.ledger.unstable) > 0
}

// finish stops the tenants, half of them with SIGKILL, and lets the replicators have
// two undisturbed cycles. After that every database has to come back.
func (m *torture) finish() {
	t := m.t
	m.endTenants()
	for _, c := range []torment{{window: "0s"}, {file: true, window: "0s"}} {
		m.tee.window.Store(false)
		m.file.window.Store(false)
		config := m.settings(c, m.proxy.url())
		s := m.shelf(c.file)
		s.began(time.Now().UnixNano())
		d := replicate(t, config)
		st := d.waitCycles(2, 3*time.Minute)
		if st.Unsynced != 0 || st.DatabasesFailed != 0 || st.Databases != len(m.paths) {
			m.auditor.note(&m.auditor.lost, "after two undisturbed cycles: %d databases, want %d; unsynced %d, failed %d: %+v", st.Databases, len(m.paths), st.Unsynced,
				st.DatabasesFailed, st.Failures)
		}
		d.stop()
		m.settle(c)
		m.compare(c)
	}
	m.auditor.close()
	m.phantoms()
	m.neighbor.close()
	m.file.close()
	m.report()
}

// compare restores everything, one by one and as a fleet, and compares it with what
// SQLite makes of a copy of each database.
func (m *torture) compare(c torment) {
	config := m.settings(c, m.server.url()).write(m.t, 0)
	want := map[string]lost{}
	for _, p := range m.paths {
		want[p] = remember(m.t, p)
	}
	kind := map[bool]string{false: "s3", true: "file"}[c.file]
	fleet := filepath.Join(m.dir, "restored", kind+"-fleet")
	r := litestream(m.t, []string{"multi-db", "restore", "-config", config, "-output-dir", fleet})
	if r.code != 0 {
		m.auditor.note(&m.auditor.lost, "%s: multi-db restore: exit %d: %s", kind, r.code, r.all())
	}
	parallel(len(m.paths), 2, func(i int) {
		p := m.paths[i]
		single := filepath.Join(m.dir, "restored", fmt.Sprintf("%s-%d.db", kind, i))
		for how, r := range map[string]result{"restore": tryRestore(m.t, config, p, single), "multi-db restore": {}} {
			out := single
			if how != "restore" {
				out = fleet + strings.TrimPrefix(p, m.root)
			}
			err := want[p].isBack(out)
			if r.code != 0 || err != nil {
				m.auditor.note(&m.auditor.lost, "%s: %s of slot %d: exit %d, %v %s", kind, how, i, r.code, err, r.all())
			}
		}
	})
	// What SQLite itself has is the last state that was committed, or one that a kill left open.
	for i, p := range m.paths {
		s, err := examine(filepath.Join(m.dir, "restored", "own.db"), sqliteImage(m.t, p))
		if err != nil {
			m.ledger.complain("slot %d itself: %v", i, err)
			continue
		}
		m.ledger.books[i].gone = append(m.ledger.books[i].gone, s.chain)
		if done := m.auditor.doneBefore(i, time.Now().UnixNano()); s.n < done {
			m.ledger.complain("slot %d itself has commit %d, not %d", i, s.n, done)
		}
	}
}

// phantoms are images of transactions that in the end were not committed.
func (m *torture) phantoms() {
	for i, b := range m.ledger.books {
		committed := b.committed()
		for chain, name := range m.auditor.chains[i] {
			if committed[chain] {
				continue
			}
			if b.mayBeUndone(chain) {
				m.undone++
			} else {
				m.auditor.note(&m.auditor.torn, "%s has commit %d of slot %d, which was rolled back", name, b.attempts[chain].n, i)
			}
		}
		for chain, a := range b.attempts {
			if a.until != 0 && !committed[chain] {
				m.ledger.complain("slot %d itself has lost commit %d", i, a.n)
			}
		}
	}
}

func (m *torture) totals() string {
	a := m.auditor
	m.ledger.catchUp()
	m.ledger.mu.Lock()
	commits := m.ledger.commits
	m.ledger.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	return fmt.Sprintf("%d commits, %d objects audited (%d distinct), %d cycles held to the rule of two, %d SIGKILLs and %d SIGTERMs of replicate, %d sweeps, %d SIGKILLs of the server, "+
		"%d SIGKILLs and %d ends of writers; torn %d, lost %d, stale %d, going back %d",
		commits, a.objects, a.distinct, a.looks, m.kills, m.terms, m.sweeps, m.outages, m.tenantKills.Load(), m.tenantEnds.Load(),
		len(a.torn), len(a.lost), len(a.stale), len(a.back))
}

func (m *torture) report() {
	t, a := m.t, m.auditor
	say("seed %d, %v, %d writers, %d databases", m.seed, m.duration, len(m.tenants), len(m.paths))
	say("%s", m.totals())
	var labels []string
	for _, l := range slices.Sorted(maps.Keys(a.labels)) {
		labels = append(labels, fmt.Sprint(l, " ", a.labels[l]))
	}
	say("distinct images by journal mode: %s", strings.Join(labels, ", "))
	say("%d decoded by the lz4 program, too; %d restored on the way; snapshot times at most %v later than the state", a.decoded, m.restored, time.Duration(a.ahead))
	say("%d images of commits that a kill had left in the WAL and another process then wrote over; %d objects of the file target not seen", m.undone, m.file.missed.Load())
	say("%s", m.proxy.tally())
	complain := func(format string, args ...any) {
		say(format, args...)
		t.Errorf(format, args...)
	}
	for what, list := range map[string][]string{
		"torn": a.torn, "lost": a.lost, "stale": a.stale, "going back": a.back,
		"the tenants themselves": m.ledger.unstable, "not of SQLite, beside a database": m.names,
	} {
		for _, s := range list[:min(20, len(list))] {
			complain("%s: %s", what, s)
		}
	}
	for _, kind := range tenantKinds {
		for _, mode := range kind.modes {
			label := (&tenant{tenantKind: kind, mode: mode}).label()
			if m.isLong && a.labels[label] == 0 {
				complain("no image of mode %s was audited", label)
			}
		}
	}
	if a.objects == 0 || m.isLong && a.looks == 0 {
		complain("nothing was looked at")
	}
	if n := m.neighbor.lost.Load() + m.file.watch.lost.Load(); n > 0 {
		complain("the kernel's queue of file events was full %d times", n)
	}
}
