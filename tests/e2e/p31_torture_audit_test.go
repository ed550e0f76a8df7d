package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// ---------------------------------------------------------------- the ledger

// attempt is a transaction that a tenant has begun to commit.
type attempt struct {
	slot   int
	gen, n int64
	prev   int64
	from   int64 // before COMMIT
	until  int64 // after it; 0: nobody knows
	label  string
}

// book is what the tenants said of one database.
type book struct {
	shared   bool
	attempts map[int64]*attempt // by chain
	done     []doneAt           // by time
	gone     []int64            // chains of databases that were deleted, and at the end of those that were not
	absent   [][2]int64         // times between which there may be no database; 0: still
	top      int64              // highest n begun
}

type doneAt struct{ at, top int64 } // top: highest n of all that were done by then

type ledger struct {
	mu       sync.Mutex
	books    []*book
	open     map[string]*bufferedLog
	commits  int64
	unstable []string // E lines, and what cannot be
}

type bufferedLog struct {
	f    *os.File
	rest []byte
}

func newLedger(slots int) *ledger {
	l := &ledger{open: map[string]*bufferedLog{}}
	for range slots {
		l.books = append(l.books, &book{attempts: map[int64]*attempt{}})
	}
	return l
}

func (l *ledger) follow(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[path] = &bufferedLog{f: f}
	return nil
}

// finish is follow's end: the process that wrote the log is gone.
func (l *ledger) finish(path string) {
	l.catchUp()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[path].f.Close()
	delete(l.open, path)
}

// catchUp reads what the tenants have said since.
func (l *ledger) catchUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for path, b := range l.open {
		chunk := make([]byte, 64<<10)
		for {
			n, _ := b.f.Read(chunk)
			if n == 0 {
				break
			}
			b.rest = append(b.rest, chunk[:n]...)
		}
		for {
			line, rest, whole := bytes.Cut(b.rest, []byte("\n"))
			if !whole {
				break
			}
			b.rest = rest
			if err := l.read(string(line)); err != nil {
				l.unstable = append(l.unstable, fmt.Sprintf("%s: %q: %v", filepath.Base(path), line, err))
			}
		}
		b.rest = slices.Clone(b.rest)
	}
}

func (l *ledger) read(line string) error {
	var slot int
	var hash, at int64
	a := attempt{}
	switch line[0] {
	case 'S':
		if _, err := fmt.Sscanf(line, "S %d %d %d %d %d %d %s", &a.slot, &a.gen, &a.n, &a.prev, &hash, &a.from, &a.label); err != nil {
			return err
		}
		b := l.books[a.slot]
		b.attempts[hash] = &a
		b.top = max(b.top, a.n)
	case 'D':
		if _, err := fmt.Sscanf(line, "D %d %d %d", &slot, &hash, &at); err != nil {
			return err
		}
		b := l.books[slot]
		if b.attempts[hash] == nil {
			return fmt.Errorf("never begun")
		}
		l.commits++
		b.attempts[hash].until = at
		b.addDone(at, b.attempts[hash].n)
		if n := len(b.absent); n > 0 && b.absent[n-1][1] == 0 {
			b.absent[n-1][1] = at
		}
	case 'G':
		if _, err := fmt.Sscanf(line, "G %d %d %d", &slot, &hash, &at); err != nil {
			return err
		}
		b := l.books[slot]
		b.gone = append(b.gone, hash)
		b.absent = append(b.absent, [2]int64{at, 0})
	default:
		return fmt.Errorf("a tenant complains")
	}
	return nil
}

func (b *book) addDone(at, n int64) {
	i := len(b.done)
	for i > 0 && b.done[i-1].at > at { // two processes
		i--
	}
	b.done = slices.Insert(b.done, i, doneAt{at, n})
	for ; i < len(b.done); i++ {
		if i > 0 {
			b.done[i].top = max(b.done[i].top, b.done[i-1].top)
		}
	}
}

// doneBefore is the highest n whose commit had returned at a time.
func (b *book) doneBefore(at int64) int64 {
	i := sort.Search(len(b.done), func(i int) bool { return b.done[i].at >= at })
	if i == 0 {
		return 0
	}
	return b.done[i-1].top
}

func (b *book) wasAbsent(from, until int64) bool {
	return slices.ContainsFunc(b.absent, func(a [2]int64) bool { return a[0] <= until && (a[1] == 0 || a[1] >= from) })
}

func (l *ledger) complain(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unstable = append(l.unstable, fmt.Sprintf(format, args...))
}

func (l *ledger) top(slot int) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.books[slot].top
}

// committed walks back from the chains that are known to have been committed: in the
// end every image has to be one of those that this finds.
func (b *book) committed() map[int64]bool {
	out := map[int64]bool{}
	for _, h := range b.gone {
		for a := b.attempts[h]; a != nil && !out[h]; a = b.attempts[h] {
			out[h] = true
			h = a.prev
		}
	}
	return out
}

// ---------------------------------------------------------------- the images

// state is what an image says of itself, and was found to be.
type state struct {
	slot          int
	gen, n, chain int64
	digest, shape int64
	label         string
	snapshot      int64 // ns
	rollback      bool  // by its header
}

// arrival is one object that a replicator has sent, in one moment.
type arrival struct {
	slot    int
	name    string
	at      int64 // when the target had it; 0: nobody knows whether it has
	removed bool  // the name was deleted
	window  bool  // objects of one name may replace each other
	body    *verdict
}

// verdict is shared by all arrivals of the same bytes.
type verdict struct {
	done chan struct{}
	state
	err error
}

// auditor judges images on a few niced threads, and keeps the bytes of those that are bad.
type auditor struct {
	t        testing.TB
	ledger   *ledger
	dir      string // evidence
	byPath   map[string]int
	queue    chan auditJob
	workers  sync.WaitGroup
	mu       sync.Mutex
	seen     map[[32]byte]*verdict
	objects  int
	distinct int
	judged   int
	looks    int
	decoded  int // by the lz4 program, too
	labels   map[string]int
	ahead    int64 // how much later than the image's state a snapshot time was at most, ns
	torn     []string
	stale    []string
	back     []string
	lost     []string
	chains   []map[int64]string // chains of images, by slot, and where they were seen
}

type auditJob struct {
	name string
	body []byte
	v    *verdict
}

const auditThreads = 2

func newAuditor(t testing.TB, l *ledger, dir string, paths []string) *auditor {
	a := &auditor{
		t: t, ledger: l, dir: dir, byPath: map[string]int{}, queue: make(chan auditJob, 200), seen: map[[32]byte]*verdict{},
		labels: map[string]int{},
	}
	for i, p := range paths {
		a.byPath[p] = i
		a.chains = append(a.chains, map[int64]string{})
	}
	for range auditThreads {
		a.workers.Go(func() {
			runtime.LockOSThread() // and never unlocked: the thread ends with its niceness
			_ = syscall.Setpriority(syscall.PRIO_PROCESS, syscall.Gettid(), 10)
			for j := range a.queue {
				a.judge(j)
			}
		})
	}
	return a
}

// submit takes an object's bytes; it waits while the auditor is behind.
func (a *auditor) submit(name string, body []byte) *verdict {
	sum := sha256.Sum256(body)
	a.mu.Lock()
	a.objects++
	v, known := a.seen[sum]
	if !known {
		v = &verdict{done: make(chan struct{})}
		a.seen[sum] = v
		a.distinct++
	}
	a.mu.Unlock()
	if !known {
		a.queue <- auditJob{name, body, v}
	}
	return v
}

func (a *auditor) close() { close(a.queue); a.workers.Wait() }

func (a *auditor) note(list *[]string, format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	*list = append(*list, fmt.Sprintf(format, args...))
}

func (a *auditor) judge(j auditJob) {
	defer close(j.v.done)
	a.mu.Lock()
	a.judged++
	number, withProgram := a.judged, a.judged%50 == 0
	a.decoded += map[bool]int{true: 1}[withProgram]
	a.mu.Unlock()
	base := filepath.Join(a.dir, fmt.Sprintf("torn-%d-%s", number, strings.ReplaceAll(j.name, "/", "_")))
	img, tr, err := decodeObject(j.body)
	if err == nil {
		j.v.state, err = examine(base+".db", img)
	}
	if err == nil && a.byPath[tr.Path] != j.v.slot {
		err = fmt.Errorf("image of slot %d in an object of %q", j.v.slot, tr.Path)
	}
	if err == nil {
		var at time.Time
		at, err = time.Parse(time.RFC3339Nano, tr.SnapshotTime)
		j.v.snapshot = at.UnixNano()
	}
	if err == nil && withProgram {
		err = a.decodeElsewhere(base, j.body, img)
	}
	if err == nil {
		err = a.place(j)
	}
	if j.v.err = err; err != nil {
		_ = os.WriteFile(base+".lz4", j.body, 0o644)
		_ = os.WriteFile(base+".db", img, 0o644)
		a.note(&a.torn, "%s: %v (kept as %s.lz4)", j.name, err, base)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.labels[j.v.label]++
	a.chains[j.v.slot][j.v.chain] = j.name
}

// examine opens an image with SQLite and holds it against what it says of itself.
func examine(path string, img []byte) (s state, err error) {
	if len(img) < 100 {
		return s, fmt.Errorf("an image of %d bytes", len(img))
	}
	if err := os.WriteFile(path, img, 0o644); err != nil {
		return s, err
	}
	defer os.Remove(path)
	db, err := sql.Open("sqlite", "file:"+path+"?immutable=1")
	if err != nil {
		return s, err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	s.rollback = img[18] == 1 && img[19] == 1
	var ok string
	if err := db.QueryRow("PRAGMA integrity_check").Scan(&ok); err != nil {
		return s, fmt.Errorf("integrity_check: %w", err)
	}
	if ok != "ok" {
		return s, fmt.Errorf("integrity_check: %s", ok)
	}
	err = db.QueryRow("SELECT slot, gen, n, chain, digest, shape, mode FROM head").
		Scan(&s.slot, &s.gen, &s.n, &s.chain, &s.digest, &s.shape, &s.label)
	if err != nil {
		return s, err
	}
	return s, s.check(db)
}

// check computes digest and shape anew.
func (s *state) check(db *sql.DB) error {
	ctx := context.Background()
	shape, err := shapeOf(ctx, db, "main")
	if err != nil {
		return err
	}
	tables, err := tablesOf(db)
	if err != nil {
		return err
	}
	var digest, top int64
	for _, table := range tables {
		rows, err := readRows(ctx, db, "main", table, "")
		if err != nil {
			return err
		}
		for _, r := range rows {
			digest += r.hash
			top = max(top, r.n)
		}
	}
	if digest != s.digest || shape != s.shape || top != s.n {
		return fmt.Errorf("no committed state: commit %d of generation %d has digest %d, shape %d, but the rows %d, the schema %d, and the youngest row is of commit %d",
			s.n, s.gen, s.digest, s.shape, digest, shape, top)
	}
	return nil
}

func tablesOf(db *sql.DB) (out []string, err error) {
	rows, err := db.Query("SELECT name FROM sqlite_master WHERE type='table' AND name<>'head'")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		out = append(out, name)
	}
	return out, rows.Err()
}

// decodeElsewhere has the lz4 program decode the object.
func (a *auditor) decodeElsewhere(base string, body, img []byte) error {
	if err := os.WriteFile(base+".lz4", body, 0o644); err != nil {
		return err
	}
	defer os.Remove(base + ".lz4")
	out, err := lz4Program(base + ".lz4")
	if err == nil && !bytes.Equal(out, img) {
		err = fmt.Errorf("lz4 -d gives another image")
	}
	return err
}

// place holds an image against what the tenant said when.
func (a *auditor) place(j auditJob) error {
	a.ledger.catchUp()
	a.ledger.mu.Lock()
	defer a.ledger.mu.Unlock()
	s := &j.v.state
	b := a.ledger.books[s.slot]
	at := b.attempts[s.chain]
	if at == nil || at.n != s.n || at.gen != s.gen {
		return fmt.Errorf("commit %d of generation %d, chain %d: its tenant never made it", s.n, s.gen, s.chain)
	}
	if at.from > s.snapshot {
		return fmt.Errorf("commit %d began %v after the snapshot time", s.n, time.Duration(at.from-s.snapshot))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	// The next commit had returned so long before the snapshot time.
	i := sort.Search(len(b.done), func(i int) bool { return b.done[i].top > s.n })
	if i < len(b.done) && b.done[i].at < s.snapshot && !b.wasAbsent(b.done[i].at, s.snapshot) {
		a.ahead = max(a.ahead, s.snapshot-b.done[i].at)
		if s.rollback {
			return fmt.Errorf("commit %d had returned %v before the snapshot time, the image has commit %d", b.done[i].top,
				time.Duration(s.snapshot-b.done[i].at), s.n)
		}
	}
	return nil
}

// ------------------------------------------------------- what a target has when

// look is what /stats said once a cycle was over.
type look struct {
	at      int64 // of the answer
	since   int64 // start of the cycle before
	named   map[int]bool
	unnamed int // failed ones that are not named
}

// shelf is what one target has of each database, as it came.
type shelf struct {
	a       *auditor
	name    string
	mu      sync.Mutex
	pending []*arrival
	looks   []look
	cycle   int64   // start of the last cycle that was completed
	scans   []int64 // starts of scans and of processes, as far as they are known
	present []map[string]*arrival
	perhaps []map[string]bool // names that may be there
	best    [][]doneAt        // highest n that had come by a time
	gaps    []map[int64]bool  // times before which something came that was not read
}

func newShelf(a *auditor, name string) *shelf {
	s := &shelf{a: a, name: name, best: make([][]doneAt, len(a.chains))}
	for range a.chains {
		s.present = append(s.present, map[string]*arrival{})
		s.perhaps = append(s.perhaps, map[string]bool{})
		s.gaps = append(s.gaps, map[int64]bool{})
	}
	return s
}

// scanBefore is the start of the last scan that is known to have begun by a time.
func (s *shelf) scanBefore(at int64) int64 {
	i := sort.Search(len(s.scans), func(i int) bool { return s.scans[i] > at })
	if i == 0 {
		return 0
	}
	return s.scans[i-1]
}

// began notes that a scan cannot have begun before.
func (s *shelf) began(at int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scans = append(s.scans, at)
}

func (s *shelf) unread(slot int, before int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gaps[slot][before] = true
}

// cycled notes a cycle that is over, and when its scan began.
func (s *shelf) cycled(scan int64, l look) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scans = append(s.scans, scan)
	l.since = s.cycle
	s.cycle = scan
	s.looks = append(s.looks, l)
}

func (s *shelf) arrive(x *arrival) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = append(s.pending, x)
}

// settle takes everything that has come so far into account, oldest first. No
// request may be under way.
func (s *shelf) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.pending {
		if x.body != nil {
			<-x.body.done
		}
	}
	slices.SortStableFunc(s.pending, func(a, b *arrival) int { return int(min(1, max(-1, a.at-b.at))) })
	for _, x := range s.pending {
		s.take(x)
	}
	s.pending = nil
	s.a.ledger.catchUp()
	for _, l := range s.looks {
		s.judge(l)
	}
	s.looks = nil
}

func (s *shelf) take(x *arrival) {
	here := s.present[x.slot]
	where := fmt.Sprintf("%s slot %d %s", s.name, x.slot, x.name)
	if x.removed {
		younger := 0
		for name := range s.perhaps[x.slot] {
			if name > x.name {
				younger++
			}
		}
		if here[x.name] != nil && younger < 2 {
			s.a.note(&s.a.lost, "%s was deleted, with %d younger ones left", where, younger)
		}
		delete(here, x.name)
		delete(s.perhaps[x.slot], x.name)
		return
	}
	s.perhaps[x.slot][x.name] = true
	if x.at == 0 || x.body.err != nil {
		return
	}
	if before := here[x.name]; before != nil && before.body != nil && before.body != x.body && !x.window {
		s.a.note(&s.a.lost, "%s: commit %d was replaced by commit %d", where, before.body.n, x.body.n)
	}
	since := s.scanBefore(x.body.snapshot)
	if required := s.a.doneBefore(x.slot, since); x.body.n < required {
		s.a.note(&s.a.stale, "%s: commit %d had returned before the scan of %s began, the image has commit %d", where, required, clockTime(since), x.body.n)
	}
	for name, other := range here {
		older, younger := other.body, x.body
		if name > x.name {
			older, younger = x.body, other.body
		}
		if older.n > younger.n && !(older.n == younger.n+1 && s.a.mayBeUndone(older)) {
			s.a.note(&s.a.back, "%s has commit %d, %s commit %d", where, x.body.n, name, other.body.n)
		}
	}
	here[x.name] = x
	best := s.best[x.slot]
	n := x.body.n
	if len(best) > 0 {
		n = max(n, best[len(best)-1].top)
	}
	s.best[x.slot] = append(best, doneAt{x.at, n})
}

// mayBeUndone is true of a transaction of which the last frame was in the WAL when its
// process was killed, while another process had the database open. Recovery gives it;
// the other process does not know of it and writes over it.
func (a *auditor) mayBeUndone(v *verdict) bool {
	a.ledger.mu.Lock()
	defer a.ledger.mu.Unlock()
	return a.ledger.books[v.slot].mayBeUndone(v.chain)
}

func (b *book) mayBeUndone(chain int64) bool {
	at := b.attempts[chain]
	return b.shared && at.label == "wal" && at.until == 0
}

func (a *auditor) doneBefore(slot int, at int64) int64 {
	a.ledger.mu.Lock()
	defer a.ledger.mu.Unlock()
	return a.ledger.books[slot].doneBefore(at)
}

func clockTime(ns int64) string { return time.Unix(0, ns).Format("15:04:05.000000") }

// judge holds a target to the rule of two cycles.
func (s *shelf) judge(l look) {
	s.a.ledger.mu.Lock()
	var missing []string
	for slot, b := range s.a.ledger.books {
		required := b.doneBefore(l.since)
		i := sort.Search(len(s.best[slot]), func(i int) bool { return s.best[slot][i].at > l.at })
		has := int64(0)
		if i > 0 {
			has = s.best[slot][i-1].top
		}
		// What came next may have replaced what was there in time, unread.
		isKnown := i == len(s.best[slot]) || !s.gaps[slot][s.best[slot][i].at]
		if has < required && isKnown && !l.named[slot] && !b.wasAbsent(l.since, l.at) {
			missing = append(missing, fmt.Sprintf("slot %d has commit %d, not %d", slot, has, required))
		}
	}
	s.a.ledger.mu.Unlock()
	s.a.mu.Lock()
	s.a.looks++
	s.a.mu.Unlock()
	if len(missing) > l.unnamed {
		s.a.note(&s.a.stale, "%s at %s, two cycles after %s, %d failed without a name: %s", s.name, clockTime(l.at), clockTime(l.since),
			l.unnamed, strings.Join(missing, "; "))
	}
}

// newestName is the newest object of a slot that the target surely has.
func (s *shelf) newestName(slot int) (name string, x *arrival) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, a := range s.present[slot] {
		if n > name {
			name, x = n, a
		}
	}
	return name, x
}
