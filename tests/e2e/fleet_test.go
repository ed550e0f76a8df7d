package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/pierrec/lz4/v4"
)

// ---------------------------------------------------------------- SQLite here

// openDB opens a database in this process: only files that no other process has
// open and that belong to the test alone.
func openDB(t testing.TB, path string) *sql.DB {
	t.Helper()
	db := must1[*sql.DB](t)(sql.Open("sqlite", path))
	db.SetMaxOpenConns(1)
	return db
}

// build makes a database by running statements one after the other.
func build(t testing.TB, path string, statements ...string) {
	t.Helper()
	db := openDB(t, path)
	defer db.Close()
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
	must(t, db.Close())
}

func queryString(t testing.TB, path, q string) string {
	t.Helper()
	db := openDB(t, path)
	defer db.Close()
	var v sql.NullString
	if err := db.QueryRow(q).Scan(&v); err != nil {
		t.Fatalf("%s: %s: %v", path, q, err)
	}
	return v.String
}

func integrity(path string) error {
	db, err := sql.Open("sqlite", path)
	if err != nil {
		return err
	}
	defer db.Close()
	var v string
	if err := db.QueryRow("PRAGMA integrity_check").Scan(&v); err != nil {
		return err
	}
	if v != "ok" {
		return fmt.Errorf("integrity_check: %s", v)
	}
	return nil
}

// checkSeq verifies that the database at path is one state that a loop committed,
// and returns its number.
func checkSeq(path string) (int64, error) {
	if err := integrity(path); err != nil {
		return 0, err
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		return 0, err
	}
	defer db.Close()
	var head, count, top, sum int64
	err = db.QueryRow(`SELECT (SELECT n FROM head), count(*), coalesce(max(n),0), (SELECT sum(v) FROM acc) FROM seq`).Scan(&head, &count, &top, &sum)
	if err != nil {
		return 0, err
	}
	if head != count || count != top || sum != 0 {
		return 0, fmt.Errorf("no committed state: head %d, count %d, max %d, sum %d", head, count, top, sum)
	}
	return head, nil
}

// sqliteImage is what SQLite makes of the files at path: they are copied, opened,
// recovered, checkpointed and closed by SQLite, and the database file is returned.
// Nothing may write to them meanwhile. A quiet file is returned as it is, cut to
// the page count of its header.
func sqliteImage(t testing.TB, path string) []byte {
	t.Helper()
	if !exists(path+"-wal") && !exists(path+"-journal") {
		return cut(must1[[]byte](t)(os.ReadFile(path)))
	}
	dir := must1[string](t)(os.MkdirTemp(sharedDir, "img-"))
	defer os.RemoveAll(dir)
	to := filepath.Join(dir, "x.db")
	for _, suffix := range []string{"", "-wal", "-journal"} {
		if exists(path + suffix) {
			must(t, os.WriteFile(to+suffix, must1[[]byte](t)(os.ReadFile(path+suffix)), 0o600))
		}
	}
	db := openDB(t, to)
	ctx := context.Background()
	conn := must1[*sql.Conn](t)(db.Conn(ctx))
	for _, s := range []string{"SELECT count(*) FROM sqlite_master", "PRAGMA wal_checkpoint(TRUNCATE)"} {
		if _, err := conn.ExecContext(ctx, s); err != nil {
			t.Fatalf("%s: recovery by SQLite: %v", path, err)
		}
	}
	conn.Close()
	must(t, db.Close())
	return cut(must1[[]byte](t)(os.ReadFile(to)))
}

// cut trims a database image to the page count in its header, where that is valid.
func cut(b []byte) []byte {
	if len(b) < 100 {
		return b
	}
	page := int(binary.BigEndian.Uint16(b[16:]))
	if page == 1 {
		page = 65536
	}
	n := int(binary.BigEndian.Uint32(b[28:]))
	if n > 0 && bytes.Equal(b[24:28], b[92:96]) && page*n <= len(b) {
		return b[:page*n]
	}
	return b
}

// sameImage compares a restored file with what SQLite makes of the source.
func sameImage(t testing.TB, src, restored string) {
	t.Helper()
	if err := compareImage(sqliteImage(t, src), restored); err != nil {
		t.Errorf("%q: %v", src, err)
	}
}

func compareImage(want []byte, restored string) error {
	got, err := os.ReadFile(restored)
	if err != nil {
		return err
	}
	return compareBytes(want, got)
}

func compareBytes(want, got []byte) error {
	if bytes.Equal(want, got) {
		return nil
	}
	at := 0
	for at < min(len(want), len(got)) && want[at] == got[at] {
		at++
	}
	return fmt.Errorf("image of %d bytes differs from the source of %d at byte %d", len(got), len(want), at)
}

// ------------------------------------------------------------------ the fleet

const placeholder = "@@TAG-0000000000000000000000000000000000"

type template struct {
	bytes []byte
	at    int // of the placeholder
	wal   bool
}

// templates are databases of 4 to 200 KB, made once by SQLite; a copy with another
// tag in place of the placeholder is a database of its own.
var templates = sync.OnceValues(func() ([]template, error) {
	var out []template
	for i, pages := range []int{0, 3, 8, 20, 40, 0, 4, 10, 30} {
		path := filepath.Join(sharedDir, fmt.Sprintf("template-%d.db", i))
		db, err := sql.Open("sqlite", path)
		if err != nil {
			return nil, err
		}
		db.SetMaxOpenConns(1)
		page, mode := 4096, "DELETE"
		if pages == 0 {
			page = 2048
		}
		if i >= 5 {
			mode = "WAL"
		}
		for _, s := range []string{
			fmt.Sprintf("PRAGMA page_size=%d", page), "PRAGMA synchronous=OFF", "PRAGMA journal_mode=" + mode,
			"CREATE TABLE t(id INTEGER PRIMARY KEY, tag TEXT, pad BLOB)",
			"INSERT INTO t VALUES(1,'" + placeholder + "',NULL)",
			fmt.Sprintf(`WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<%d)
				INSERT INTO t SELECT i+1, 'row '||i, CASE i%%2 WHEN 0 THEN randomblob(3000) ELSE zeroblob(3000) END FROM c WHERE i<=%d`, pages+1, pages),
		} {
			if _, err := db.Exec(s); err != nil {
				return nil, fmt.Errorf("%s: %w", s, err)
			}
		}
		if err := db.Close(); err != nil {
			return nil, err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		at := bytes.Index(b, []byte(placeholder))
		if at < 0 || bytes.Count(b, []byte(placeholder)) != 1 {
			return nil, fmt.Errorf("template %d: placeholder not found once", i)
		}
		out = append(out, template{b, at, i >= 5})
	}
	return out, nil
})

func tagged(tpl template, tag string) []byte {
	b := bytes.Clone(tpl.bytes)
	copy(b[tpl.at:], fmt.Sprintf("%-*.*s", len(placeholder), len(placeholder), tag))
	return b
}

// makeFleet creates n databases in the seed's layout below root.
func makeFleet(t testing.TB, root string, n int) []string {
	t.Helper()
	tpls := must1[[]template](t)(templates())
	paths := make([]string, n)
	dirs := make(map[string]bool)
	for i := range paths {
		dir := filepath.Join(root, fmt.Sprintf("p%d", i%4), "databases", fmt.Sprintf("d%d", i%10), "branches", []string{"main", "dev"}[i%2], "tenants")
		if !dirs[dir] {
			must(t, os.MkdirAll(dir, 0o755))
			dirs[dir] = true
		}
		paths[i] = filepath.Join(dir, fmt.Sprintf("t%05d.db", i))
		must(t, os.WriteFile(paths[i], tagged(tpls[i%len(tpls)], fmt.Sprint("tenant ", i, " ", rand.Uint64())), 0o640))
	}
	return paths
}

// simple makes one database with a table and rows at path, directories included.
func simple(t testing.TB, path string, setup ...string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	build(t, path, append(append([]string{}, setup...), "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)",
		"INSERT INTO t(v) VALUES('one'),('two'),(hex(randomblob(20)))")...)
}

// change commits one change to a database that nobody has open.
func change(t testing.TB, path string) {
	t.Helper()
	build(t, path, "UPDATE t SET tag=hex(randomblob(20)) WHERE id=1")
}

// keyOf is the key prefix that the seed's template gives to path.
func keyOf(root, path string) string {
	rel, err := filepath.Rel(root, path)
	if err != nil {
		panic(err)
	}
	p := strings.Split(rel, "/")
	return strings.Join([]string{p[0], p[2], p[4], strings.TrimSuffix(p[6], ".db")}, "/")
}

// -------------------------------------------------------------------- objects

type trailer struct {
	Format        int    `json:"format"`
	Path          string `json:"path"`
	SnapshotTime  string `json:"snapshot_time"`
	DatabaseSize  int64  `json:"database_size"`
	PageSize      int64  `json:"page_size"`
	ChangeCounter int64  `json:"change_counter"`
	Mode          string `json:"mode"`
	UID           int    `json:"uid"`
	GID           int    `json:"gid"`
	LZ4SHA256     string `json:"lz4_sha256"`
}

// splitObject finds the end of the first LZ4 frame by walking its blocks, as the
// frame format says, and takes the skippable frame behind it apart.
func splitObject(b []byte) (frame []byte, line []byte, tr trailer, err error) {
	if len(b) < 15 || binary.LittleEndian.Uint32(b) != 0x184D2204 {
		return nil, nil, tr, fmt.Errorf("no LZ4 frame at the start")
	}
	flg := b[4]
	if flg>>6 != 1 || flg&0x20 == 0 || flg&0x08 == 0 || flg&0x04 == 0 {
		return nil, nil, tr, fmt.Errorf("frame flags %#x: want version 1, independent blocks, content size, content checksum", flg)
	}
	off := 6 + 8 + 1
	if flg&1 != 0 {
		off += 4
	}
	for {
		if off+4 > len(b) {
			return nil, nil, tr, fmt.Errorf("frame is cut")
		}
		n := int(binary.LittleEndian.Uint32(b[off:]) & 0x7fffffff)
		off += 4
		if n == 0 {
			break
		}
		off += n
		if flg&0x10 != 0 {
			off += 4
		}
	}
	off += 4
	if off+8 > len(b) || binary.LittleEndian.Uint32(b[off:]) != 0x184D2A50 {
		return nil, nil, tr, fmt.Errorf("no skippable frame behind the first frame")
	}
	n := int(binary.LittleEndian.Uint32(b[off+4:]))
	if off+8+n != len(b) {
		return nil, nil, tr, fmt.Errorf("skippable frame of %d bytes in a rest of %d", n, len(b)-off-8)
	}
	payload := b[off+8:]
	line, sum, ok := bytes.Cut(payload, []byte("\n"))
	if !ok || fmt.Sprintf("%x", sha256.Sum256(line)) != string(sum) {
		return nil, nil, tr, fmt.Errorf("trailer: checksum %q does not fit the line %q", sum, line)
	}
	frame = b[:off]
	if err := json.Unmarshal(line, &tr); err != nil {
		return nil, nil, tr, err
	}
	if fmt.Sprintf("%x", sha256.Sum256(frame)) != tr.LZ4SHA256 {
		return nil, nil, tr, fmt.Errorf("lz4_sha256 does not fit the frame")
	}
	return frame, line, tr, nil
}

// decodeObject returns the image in an object, decoded by pierrec/lz4.
func decodeObject(b []byte) ([]byte, trailer, error) {
	frame, _, tr, err := splitObject(b)
	if err != nil {
		return nil, tr, err
	}
	img, err := io.ReadAll(lz4.NewReader(bytes.NewReader(frame)))
	if err == nil && int64(len(img)) != tr.DatabaseSize {
		err = fmt.Errorf("database_size %d, image has %d", tr.DatabaseSize, len(img))
	}
	return img, tr, err
}

var objectNamed = regexp.MustCompile(`^\d{8}T\d{6}Z\.db\.lz4$`)

// objects lists the objects of one database in a target directory (a file target
// or the server's bucket), oldest name first.
func objects(t testing.TB, target, key string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(target, key))
	if os.IsNotExist(err) {
		return nil
	}
	must(t, err)
	var out []string
	for _, e := range entries {
		if objectNamed.MatchString(e.Name()) {
			out = append(out, filepath.Join(target, key, e.Name()))
		}
	}
	sort.Strings(out)
	return out
}

// newest decodes the newest object of one database.
func newest(t testing.TB, target, key string) ([]byte, trailer) {
	t.Helper()
	all := objects(t, target, key)
	if len(all) == 0 {
		t.Fatalf("no object of %q in the target", key)
	}
	last := all[len(all)-1]
	img, tr, err := decodeObject(must1[[]byte](t)(os.ReadFile(last)))
	if err != nil {
		t.Fatalf("%s: %v", last, err)
	}
	return img, tr
}

// countObjects returns how many objects a target directory holds, and their bytes.
func countObjects(t testing.TB, target string) (n int, size int64) {
	t.Helper()
	must(t, filepath.WalkDir(target, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".db.lz4") || strings.HasPrefix(d.Name(), ".") {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n, size = n+1, size+info.Size()
		}
		return err
	}))
	return n, size
}

// verifyTarget compares the newest object of each database with its source.
func verifyTarget(t testing.TB, root, target string, paths []string) {
	t.Helper()
	bad := 0
	for _, p := range paths {
		all := objects(t, target, keyOf(root, p))
		if len(all) == 0 {
			t.Errorf("%q: not in the target", p)
			bad++
		} else if img, _, err := decodeObject(must1[[]byte](t)(os.ReadFile(all[len(all)-1]))); err != nil {
			t.Errorf("%q: %v", p, err)
			bad++
		} else if err := compareBytes(sqliteImage(t, p), img); err != nil {
			t.Errorf("%q: %v", p, err)
			bad++
		}
		if bad > 10 {
			t.Fatal("and so on")
		}
	}
}

// ------------------------------------------------------------- trees untouched

// photo describes every entry of a tree: kind, mode, owner, size, times of change,
// inode and content.
func photo(t testing.TB, root string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	must(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		s := fmt.Sprintf("%v %d:%d ino %d mtime %d.%09d ctime %d.%09d", info.Mode(), st.Uid, st.Gid, st.Ino,
			st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec)
		switch {
		case info.Mode().IsRegular():
			sum, err := fileSum(path)
			if err != nil {
				return err
			}
			s += fmt.Sprintf(" size %d sha256 %s", info.Size(), sum)
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			s += " to " + to
		}
		out[path] = s
		return nil
	}))
	return out
}

func fileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return fmt.Sprintf("%x", h.Sum(nil)), err
}

func samePhoto(t testing.TB, before, after map[string]string, skip func(path string) bool) {
	t.Helper()
	for p, s := range before {
		if skip != nil && skip(p) {
			continue
		}
		if after[p] == "" {
			t.Errorf("%q has disappeared", p)
		} else if after[p] != s {
			t.Errorf("%q has changed\nfrom %s\nto   %s", p, s, after[p])
		}
	}
	for p := range after {
		if before[p] == "" && (skip == nil || !skip(p)) {
			t.Errorf("%q has appeared", p)
		}
	}
}

func underDir(dir string) func(string) bool {
	return func(p string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }
}

// parallel runs f for 0..n-1 on a few goroutines.
func parallel(n, workers int, f func(i int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range workers {
		wg.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

func run2(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func inode(info fs.FileInfo) uint64 { return info.Sys().(*syscall.Stat_t).Ino }
