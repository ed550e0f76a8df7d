package e2e

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The tenants of TestTorture: this test binary in processes of their own, which are
// killed at any moment. Each database tells which state it is in, and proves it:
//
//	head.n       number of the last commit; it goes on through all generations
//	head.gen     n of the commit that made this file
//	head.chain   hash of the commit before, n, a random number, digest and shape
//	head.digest  sum of the hashes of all rows of all tables (rowHash)
//	head.shape   hash of the schema
//	*.n          the commit that wrote the row
//
// So an image with rows of two transactions, or of an older page beside a newer one,
// has another digest than head says, and one that was never committed has a chain that
// no log has. The log (one file for each process, one write for each line) says, with
// the wall clock in ns:
//
//	S slot gen n prev chain t mode   before COMMIT (or before the file gets its name)
//	D slot chain t                   it has returned
//	G slot chain t                   the database is deleted next
//	E text                           something that must not happen

const tortureSchema = `CREATE TABLE head(id INTEGER PRIMARY KEY, slot INTEGER, gen INTEGER, n INTEGER, chain INTEGER, digest INTEGER, shape INTEGER, mode TEXT);
CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, pad BLOB);
CREATE INDEX t_n ON t(n);`

// tenantKind is how a database is used.
type tenantKind struct {
	modes     []string // journal modes, one for each opening
	exclusive bool
	conns     int
	manual    bool // no automatic checkpoints
	immortal  bool // what SQLite itself loses in a kill is never killed
	switching bool // between the modes at run time
	remade    bool // replaced by renaming, deleted and made again
	large     bool
	pair      bool // the next slot is written in the same transactions
	shared    bool // by two processes
}

var (
	journals = []string{"DELETE", "TRUNCATE", "PERSIST"}
	anyMode  = []string{"DELETE", "WAL", "TRUNCATE", "WAL", "PERSIST"}
)

// tenantKinds are dealt to the slots in this order; a pair takes two.
var tenantKinds = []tenantKind{
	{modes: []string{"DELETE"}, conns: 2},
	{modes: []string{"WAL"}, conns: 2},
	{modes: []string{"MEMORY"}, conns: 1, immortal: true},
	{modes: []string{"WAL"}, conns: 2, manual: true},
	{modes: []string{"TRUNCATE"}, conns: 2},
	{modes: anyMode, conns: 1, remade: true},
	{modes: []string{"OFF"}, conns: 1, immortal: true},
	{modes: []string{"WAL"}, conns: 1, exclusive: true},
	{modes: []string{"PERSIST"}, conns: 2},
	{modes: anyMode, conns: 1, switching: true},
	{modes: journals, conns: 1, pair: true},
	{modes: journals, conns: 1},
	{modes: []string{"WAL"}, conns: 2, shared: true},
	{modes: journals, conns: 1, exclusive: true},
	{modes: []string{"DELETE"}, conns: 2, shared: true},
	{modes: anyMode, conns: 1, large: true},
	{modes: []string{"WAL"}, conns: 1, pair: true},
	{modes: []string{"WAL"}, conns: 1},
	{modes: anyMode, conns: 1, remade: true, switching: true},
	{modes: []string{"WAL"}, conns: 1, large: true, manual: true},
}

type tenantSlot struct {
	ID   int
	Kind int
	Path string
	Peer *tenantSlot // of a pair
	N    int64       // a database that is not there begins behind it
}

type tenantOrder struct {
	Log   string
	Side  string // on the same file system, for databases that are not in place yet
	Seed  uint64
	Pause int // ms, of an ordinary pause at most
	Slots []tenantSlot
}

// tenantMain runs until standard input ends, then closes everything in good order.
func tenantMain() {
	var order tenantOrder
	if err := json.Unmarshal([]byte(os.Getenv("E2E_TENANTS")), &order); err != nil {
		panic(err)
	}
	log, err := os.OpenFile(order.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		panic(err)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for _, s := range order.Slots {
		t := &tenant{
			tenantSlot: s, tenantKind: tenantKinds[s.Kind], side: order.Side, pause: order.Pause, log: log,
			dice: rand.New(rand.NewPCG(order.Seed, uint64(s.ID))), ctx: context.Background(), stop: &stop,
		}
		wg.Go(t.run)
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	stop.Store(true)
	wg.Wait()
}

type tenant struct {
	tenantSlot
	tenantKind
	side  string
	pause int
	log   *os.File
	dice  *rand.Rand
	ctx   context.Context
	stop  *atomic.Bool

	mode    string
	dbs     []*sql.DB
	conns   []*sql.Conn
	reading *sql.Conn // has a read transaction open
}

// chance is true once in n times.
func (t *tenant) chance(n int) bool { return t.dice.IntN(n) == 0 }

func pick[T any](dice *rand.Rand, of ...T) T { return of[dice.IntN(len(of))] }

func (t *tenant) say(format string, args ...any) {
	if _, err := fmt.Fprintf(t.log, format+"\n", args...); err != nil {
		panic(err)
	}
}

func (t *tenant) complain(what string, err error) {
	t.say("E slot %d %s %s: %s: %v", t.ID, t.mode, filepath.Base(t.Path), what, err)
}

func (t *tenant) run() {
	for !t.stop.Load() {
		if err := t.session(); err != nil && !isBusy(err) {
			t.complain("session", err)
		}
		t.sleep(t.dice.IntN(pick(t.dice, 50, 300, 1500)))
	}
}

// sleep is in ms, and ends when it is time to go.
func (t *tenant) sleep(ms int) {
	for end := time.Now().Add(time.Duration(ms) * time.Millisecond); time.Now().Before(end) && !t.stop.Load(); {
		time.Sleep(min(20*time.Millisecond, time.Until(end)))
	}
}

// session opens the database, uses it for a while, and closes it.
func (t *tenant) session() (err error) {
	if err = t.open(); err == nil {
		err = t.use()
	}
	if e := t.close(); err == nil {
		err = e
	}
	if err == nil && t.remade && !t.stop.Load() {
		err = t.remake()
	}
	return err
}

func (t *tenant) open() error {
	t.mode = pick(t.dice, t.modes...)
	conns := t.tenantKind.conns
	for range conns {
		if err := t.connect(t.Path); err != nil {
			return err
		}
	}
	if err := t.ensure("main", t.ID, t.N); err != nil {
		return err
	}
	if !t.pair {
		return nil
	}
	if err := t.exec(t.conns[0], "ATTACH "+quote(t.Peer.Path)+" AS peer"); err != nil {
		return err
	}
	if err := t.exec(t.conns[0], "PRAGMA peer.journal_mode="+t.mode); err != nil {
		return err
	}
	return t.ensure("peer", t.Peer.ID, t.Peer.N)
}

// connect opens one more connection. A new database gets its page size and so on.
func (t *tenant) connect(path string) error {
	db, err := sql.Open("sqlite", path)
	if err != nil {
		return err
	}
	t.dbs = append(t.dbs, db)
	db.SetMaxOpenConns(1)
	c, err := db.Conn(t.ctx)
	if err != nil {
		return err
	}
	t.conns = append(t.conns, c)
	setup := []string{"busy_timeout=20000"}
	if t.exclusive {
		setup = append(setup, "locking_mode=EXCLUSIVE")
	}
	auto := pick(t.dice, 10, 50, 1000)
	if t.manual {
		auto = 0
	}
	setup = append(setup,
		fmt.Sprint("page_size=", pick(t.dice, 512, 1024, 4096, 4096, 8192, 65536)),
		fmt.Sprint("auto_vacuum=", t.dice.IntN(3)),
		"journal_mode="+t.mode,
		fmt.Sprint("cache_size=", pick(t.dice, 8, 20, 100, -2000)),
		fmt.Sprint("synchronous=", pick(t.dice, 0, 0, 0, 1, 2)),
		fmt.Sprint("secure_delete=", t.dice.IntN(2)),
		fmt.Sprint("wal_autocheckpoint=", auto),
		fmt.Sprint("journal_size_limit=", pick(t.dice, -1, -1, 0, 20000)))
	for _, s := range setup {
		if err := t.exec(c, "PRAGMA "+s); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

func (t *tenant) close() (err error) {
	t.endReading()
	for i, db := range t.dbs {
		if i < len(t.conns) {
			err = errors.Join(err, t.conns[i].Close())
		}
		err = errors.Join(err, db.Close())
	}
	t.dbs, t.conns = nil, nil
	return err
}

func (t *tenant) exec(c *sql.Conn, q string, args ...any) error {
	_, err := c.ExecContext(t.ctx, q, args...)
	return err
}

func (t *tenant) number(c *sql.Conn, q string, args ...any) (n int64, err error) {
	err = c.QueryRowContext(t.ctx, q, args...).Scan(&n)
	return n, err
}

// use is what an application does until it closes the database.
func (t *tenant) use() error {
	hot := t.chance(10)
	for range 20 + t.dice.IntN(150) {
		if t.stop.Load() {
			return nil
		}
		if err := t.step(pick(t.dice, t.conns...)); err != nil {
			if isBusy(err) {
				continue
			}
			return err
		}
		switch {
		case hot:
		case t.chance(25): // quiet enough to be read at rest
			t.sleep(200 + t.dice.IntN(1800))
		case !t.chance(4):
			t.sleep(1 + t.dice.IntN(t.pause))
		}
	}
	return nil
}

func (t *tenant) step(c *sql.Conn) error {
	if c == t.reading {
		t.endReading()
	}
	switch {
	case t.chance(30):
		t.endReading()
		return t.physical(c)
	case t.mode == "WAL" && t.chance(4):
		return t.checkpoint(c)
	case t.mode == "WAL" && len(t.conns) == 2 && t.chance(8):
		return t.toggleReading()
	case t.chance(50):
		return os.Chmod(t.Path, pick(t.dice, os.FileMode(0o600), 0o640, 0o644, 0o666))
	case t.switching && t.chance(12):
		mode := pick(t.dice, t.modes...)
		if err := t.exec(c, "PRAGMA journal_mode="+mode); err != nil {
			return err
		}
		err := c.QueryRowContext(t.ctx, "PRAGMA journal_mode").Scan(&mode)
		t.mode = strings.ToUpper(mode)
		return err
	}
	return t.transact(c)
}

// physical changes the file, not the content.
func (t *tenant) physical(c *sql.Conn) error {
	switch t.dice.IntN(3) {
	case 0:
		return t.exec(c, fmt.Sprintf("PRAGMA incremental_vacuum(%d)", 1+t.dice.IntN(20)))
	case 1: // in rollback mode this changes the size of pages, too
		if err := t.exec(c, fmt.Sprint("PRAGMA page_size=", pick(t.dice, 1024, 4096, 16384))); err != nil {
			return err
		}
	}
	return t.exec(c, "VACUUM")
}

func (t *tenant) checkpoint(c *sql.Conn) error {
	kind := pick(t.dice, "PASSIVE", "FULL", "RESTART", "TRUNCATE")
	if kind != "PASSIVE" {
		t.endReading() // else this would wait for ourselves
	}
	return t.exec(c, "PRAGMA wal_checkpoint("+kind+")")
}

// toggleReading begins or ends a read transaction, which holds checkpoints back.
func (t *tenant) toggleReading() error {
	if t.reading != nil {
		t.endReading()
		return nil
	}
	c := t.conns[1]
	if err := t.exec(c, "BEGIN"); err != nil {
		return err
	}
	if _, err := t.number(c, "SELECT n FROM head"); err != nil {
		return err
	}
	t.reading = c
	return nil
}

func (t *tenant) endReading() {
	if t.reading != nil {
		_ = t.exec(t.reading, "ROLLBACK")
		t.reading = nil
	}
}

// -------------------------------------------------------------- transactions

// chain is one database in a transaction.
type chain struct {
	schema         string // main or peer
	slot           int
	gen, n         int64
	prev, hash     int64
	digest, shape  int64
	reshaped       bool
	rows, rowsOver int64 // rows there are, and above which many are deleted
}

func (t *tenant) transact(c *sql.Conn) error {
	begin := pick(t.dice, "BEGIN IMMEDIATE", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE")
	if err := t.exec(c, begin); err != nil {
		return err
	}
	err := t.inside(c)
	if err != nil {
		_ = t.exec(c, "ROLLBACK")
	}
	if errors.Is(err, errRolledBack) {
		return nil
	}
	return err
}

var errRolledBack = errors.New("rolled back on purpose")

// inside is everything between BEGIN and COMMIT, and this.
func (t *tenant) inside(c *sql.Conn) error {
	chains := []*chain{{schema: "main", slot: t.ID}}
	if t.pair && !t.chance(3) {
		chains = append(chains, &chain{schema: "peer", slot: t.Peer.ID})
	}
	for _, h := range chains {
		err := c.QueryRowContext(t.ctx, "SELECT gen, n, chain, digest, shape, (SELECT count(*) FROM "+h.schema+".t) FROM "+h.schema+".head").
			Scan(&h.gen, &h.n, &h.prev, &h.digest, &h.shape, &h.rows)
		if err != nil {
			return err
		}
		h.n++
		h.rowsOver = 400
		if t.large {
			h.rowsOver = 6000
		}
		if t.mode != "OFF" && t.chance(8) {
			before := *h
			if err := t.exec(c, "SAVEPOINT a"); err != nil {
				return err
			}
			if err := t.change(c, h); err != nil {
				return err
			}
			if err := t.exec(c, "ROLLBACK TO a; RELEASE a"); err != nil {
				return err
			}
			*h = before
		}
		if err := t.change(c, h); err != nil {
			return err
		}
	}
	if t.mode != "OFF" && t.chance(15) {
		return errRolledBack
	}
	return t.commit(c, chains)
}

// commit writes the heads, and commits.
func (t *tenant) commit(c *sql.Conn, chains []*chain) error {
	for _, h := range chains {
		if h.reshaped {
			shape, err := shapeOf(t.ctx, c, h.schema)
			if err != nil {
				return err
			}
			h.shape = shape
		}
		h.hash = chainHash(h.prev, h.n, t.dice.Int64(), h.digest, h.shape)
		q := "UPDATE " + h.schema + ".head SET n=?, chain=?, digest=?, shape=?, mode=?"
		if err := t.exec(c, q, h.n, h.hash, h.digest, h.shape, t.label()); err != nil {
			return err
		}
		t.begun(h)
	}
	// Held up by a reader, it can be repeated.
	err := t.exec(c, "COMMIT")
	for tries := 0; tries < 3 && isBusy(err); tries++ {
		err = t.exec(c, "COMMIT")
	}
	if err == nil {
		now := time.Now().UnixNano()
		for _, h := range chains {
			t.say("D %d %d %d", h.slot, h.hash, now)
		}
	}
	return err
}

func (t *tenant) begun(h *chain) {
	t.say("S %d %d %d %d %d %d %s", h.slot, h.gen, h.n, h.prev, h.hash, time.Now().UnixNano(), t.label())
}

// label is the journal mode as the totals show it.
func (t *tenant) label() string {
	s := strings.ToLower(t.mode)
	if t.exclusive {
		s += "-exclusive"
	}
	if t.manual {
		s += "-manual"
	}
	return s
}

// change changes rows, and now and then the schema. Always at least one row of t is
// inserted, so that the transaction can be told from its rows.
func (t *tenant) change(c *sql.Conn, h *chain) error {
	if err := t.insert(c, h, "t", 1+t.dice.IntN(3)); err != nil {
		return err
	}
	many := 40 + t.dice.IntN(100)
	if t.large {
		many *= 8
	}
	switch {
	case h.rows > h.rowsOver:
		return t.remove(c, h, "t", h.rows*int64(30+t.dice.IntN(65))/100)
	case t.chance(10): // outgrows the cache
		return t.update(c, h, many)
	case t.chance(12):
		return t.insert(c, h, "t", many)
	case t.chance(12):
		return t.reshape(c, h)
	case t.chance(3):
		return t.remove(c, h, "t", 1)
	}
	return t.update(c, h, 1+t.dice.IntN(4))
}

func (t *tenant) pad() []byte {
	b := make([]byte, t.dice.IntN(pick(t.dice, 60, 400, 3000)))
	for i := t.dice.IntN(len(b) + 1); i < len(b); i++ { // the rest stays zero
		b[i] = byte(t.dice.Uint32())
	}
	return b
}

func (t *tenant) insert(c *sql.Conn, h *chain, table string, count int) error {
	for range count {
		pad := t.pad()
		id, err := t.number(c, "INSERT INTO "+h.schema+"."+table+"(n, pad) VALUES(?, ?) RETURNING id", h.n, pad)
		if err != nil {
			return err
		}
		h.digest += rowHash(table, id, h.n, pad)
	}
	return nil
}

func (t *tenant) update(c *sql.Conn, h *chain, count int) error {
	from := t.dice.Int64N(h.rows + 1)
	rows, err := readRows(t.ctx, c, h.schema, "t", fmt.Sprintf("ORDER BY id LIMIT %d OFFSET %d", count, from))
	if err != nil {
		return err
	}
	for _, r := range rows {
		pad := t.pad()
		if err := t.exec(c, "UPDATE "+h.schema+".t SET n=?, pad=? WHERE id=?", h.n, pad, r.id); err != nil {
			return err
		}
		h.digest += rowHash("t", r.id, h.n, pad) - r.hash
	}
	return nil
}

// remove deletes the oldest rows.
func (t *tenant) remove(c *sql.Conn, h *chain, table string, count int64) error {
	rows, err := readRows(t.ctx, c, h.schema, table, fmt.Sprint("ORDER BY id LIMIT ", count))
	if err != nil || len(rows) == 0 {
		return err
	}
	for _, r := range rows {
		h.digest -= r.hash
	}
	return t.exec(c, "DELETE FROM "+h.schema+"."+table+" WHERE id<=?", rows[len(rows)-1].id)
}

// reshape makes or drops a table with an index, or adds a column.
func (t *tenant) reshape(c *sql.Conn, h *chain) error {
	h.reshaped = true
	x := fmt.Sprint("x", t.dice.IntN(3))
	there, err := t.number(c, "SELECT count(*) FROM "+h.schema+".sqlite_master WHERE name=?", x)
	if err != nil {
		return err
	}
	switch {
	case there == 0:
		err = t.exec(c, fmt.Sprintf("CREATE TABLE %[1]s.%[2]s(id INTEGER PRIMARY KEY, n INTEGER, pad BLOB); CREATE INDEX %[1]s.%[2]s_n ON %[2]s(n, pad)", h.schema, x))
		if err == nil {
			err = t.insert(c, h, x, 1+t.dice.IntN(30))
		}
	case t.chance(2):
		err = t.exec(c, fmt.Sprintf("ALTER TABLE %s.%s ADD COLUMN c%d DEFAULT 'x'", h.schema, x, h.n))
	default:
		if err = t.remove(c, h, x, 1<<40); err == nil {
			err = t.exec(c, "DROP TABLE "+h.schema+"."+x)
		}
	}
	return err
}

// ensure makes the tables of a new database, whose numbers begin behind n.
func (t *tenant) ensure(schema string, slot int, n int64) error {
	c := t.conns[0]
	there, err := t.number(c, "SELECT count(*) FROM "+schema+".sqlite_master WHERE name='head'")
	if err != nil || there != 0 {
		return err
	}
	if err := t.exec(c, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	// Another process may have been faster.
	there, err = t.number(c, "SELECT count(*) FROM "+schema+".sqlite_master WHERE name='head'")
	if err == nil && there == 0 {
		h := &chain{schema: schema, slot: slot, gen: n + 1, n: n + 1, reshaped: true}
		if err = t.genesis(c, h); err == nil {
			if err = t.commit(c, []*chain{h}); err == nil {
				return nil
			}
		}
	}
	_ = t.exec(c, "ROLLBACK")
	return err
}

func (t *tenant) genesis(c *sql.Conn, h *chain) error {
	sql := strings.ReplaceAll(tortureSchema, "CREATE TABLE ", "CREATE TABLE "+h.schema+".")
	if err := t.exec(c, strings.ReplaceAll(sql, "CREATE INDEX ", "CREATE INDEX "+h.schema+".")); err != nil {
		return err
	}
	if err := t.exec(c, "INSERT INTO "+h.schema+".head(id, slot, gen) VALUES(1, ?, ?)", h.slot, h.gen); err != nil {
		return err
	}
	return t.insert(c, h, "t", 1+t.dice.IntN(60))
}

// ------------------------------------------------------------- new databases

// remake puts another database in the place of this one, which is closed: built beside
// and renamed over it, or made anew after it was deleted.
func (t *tenant) remake() error {
	n, hash, err := t.last()
	if err != nil {
		return err
	}
	t.N = n
	if t.chance(2) {
		t.say("G %d %d %d", t.ID, hash, time.Now().UnixNano())
		for _, suffix := range []string{"", "-journal", "-wal", "-shm"} {
			if err := removeIfThere(t.Path + suffix); err != nil {
				return err
			}
		}
		if t.chance(2) {
			t.sleep(t.dice.IntN(2500))
		}
		return nil
	}
	return t.replace(hash)
}

// last opens the database once more to see where it stands.
func (t *tenant) last() (n, hash int64, err error) {
	if err = t.connect(t.Path); err == nil {
		err = t.conns[0].QueryRowContext(t.ctx, "SELECT n, chain FROM head").Scan(&n, &hash)
	}
	return n, hash, errors.Join(err, t.close())
}

func (t *tenant) replace(prev int64) error {
	side := filepath.Join(t.side, fmt.Sprintf("%d-%d.db", t.ID, os.Getpid()))
	for _, suffix := range []string{"", "-journal", "-wal", "-shm"} {
		if err := removeIfThere(side + suffix); err != nil {
			return err
		}
	}
	h := &chain{schema: "main", slot: t.ID, gen: t.N + 1, n: t.N + 1, prev: prev}
	t.mode = pick(t.dice, t.modes...)
	err := t.connect(side)
	if err == nil {
		err = t.fill(t.conns[0], h)
	}
	if err = errors.Join(err, t.close()); err != nil {
		return err
	}
	// What the old one leaves would be taken for the new one's; it is closed, so its journal is void.
	if err := removeIfThere(t.Path + "-journal"); err != nil {
		return err
	}
	if t.chance(3) {
		// As a copy that keeps its times.
		old := time.Now().Add(-time.Duration(1+t.dice.IntN(1000)) * time.Hour)
		if err := os.Chtimes(side, old, old); err != nil {
			return err
		}
	}
	t.begun(h)
	if err := os.Rename(side, t.Path); err != nil {
		return err
	}
	t.say("D %d %d %d", t.ID, h.hash, time.Now().UnixNano())
	return nil
}

// fill makes a database with one commit that nobody sees before it is in place.
func (t *tenant) fill(c *sql.Conn, h *chain) error {
	if err := t.exec(c, "BEGIN"); err != nil {
		return err
	}
	if err := t.genesis(c, h); err != nil {
		return err
	}
	shape, err := shapeOf(t.ctx, c, "main")
	if err != nil {
		return err
	}
	h.shape = shape
	h.hash = chainHash(h.prev, h.n, t.dice.Int64(), h.digest, h.shape)
	if err := t.exec(c, "UPDATE head SET n=?, chain=?, digest=?, shape=?, mode=?", h.n, h.hash, h.digest, h.shape, t.label()); err != nil {
		return err
	}
	return t.exec(c, "COMMIT")
}

// ---------------------------------------------------------------- the hashes

func sum64(b []byte) int64 {
	s := sha256.Sum256(b)
	return int64(binary.BigEndian.Uint64(s[:]))
}

func rowHash(table string, id, n int64, pad []byte) int64 {
	b := append([]byte(table), 0)
	b = binary.BigEndian.AppendUint64(b, uint64(id))
	b = binary.BigEndian.AppendUint64(b, uint64(n))
	return sum64(append(b, pad...))
}

func chainHash(of ...int64) int64 {
	var b []byte
	for _, v := range of {
		b = binary.BigEndian.AppendUint64(b, uint64(v))
	}
	return sum64(b)
}

type tenantRow struct{ id, n, hash int64 }

type querier interface {
	QueryContext(ctx context.Context, q string, args ...any) (*sql.Rows, error)
}

func readRows(ctx context.Context, c querier, schema, table, tail string) (out []tenantRow, err error) {
	rows, err := c.QueryContext(ctx, "SELECT id, n, pad FROM "+schema+"."+table+" "+tail)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r tenantRow
		var pad sql.RawBytes
		if err := rows.Scan(&r.id, &r.n, &pad); err != nil {
			return nil, err
		}
		r.hash = rowHash(table, r.id, r.n, pad)
		out = append(out, r)
	}
	return out, rows.Err()
}

// shapeOf hashes what the schema says, in an order that VACUUM keeps.
func shapeOf(ctx context.Context, c querier, schema string) (int64, error) {
	rows, err := c.QueryContext(ctx, "SELECT type, name, sql FROM "+schema+".sqlite_master ORDER BY name")
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var b []byte
	for rows.Next() {
		var kind, name, sql string
		if err := rows.Scan(&kind, &name, &sql); err != nil {
			return 0, err
		}
		b = fmt.Appendf(b, "%s %s %s\n", kind, name, sql)
	}
	return sum64(b), rows.Err()
}
