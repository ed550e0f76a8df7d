package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pierrec/lz4/v4"
)

// Point 3: a target that is an enemy. Keys first: whatever they say, nothing is read
// or written outside the output tree.
func Test23Keys(t *testing.T) {
	t.Parallel()
	s := startFakeS3(t)
	base := t.TempDir()
	root := filepath.Join(base, "deep/er/data")
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	name := objectAt(at)
	pathOf := func(key string) string {
		p := strings.Split(key, "/")
		for len(p) < 4 {
			p = append(p, "x")
		}
		return root + "/" + p[0] + "/databases/" + p[1] + "/branches/" + p[2] + "/tenants/" + strings.Join(p[3:], "/") + ".db"
	}
	good := []string{"p0/d/main/g1", "p0/d/main/g2", "p1/d/main/g3", "zz/zz/zz/zz", "p0/d/main/new%0Aline"}
	want := map[string]bool{}
	for _, k := range good {
		p := pathOf(strings.ReplaceAll(k, "%0A", "\n"))
		want[p] = true
		s.put(k+"/"+name, forge(strings.ReplaceAll(p, "\n", "%0A"), smallImage(t, "good "+k), at))
	}
	long := strings.Repeat("l", 240)
	hostile := []string{
		"../../../../evil/" + name, "../x/y/z/" + name, "p0/../main/evil/" + name, "p0/d/main/../" + name, "p0/d/../../" + name,
		"./d/main/evil/" + name, "p0/d/main/./" + name, "..././../../" + name,
		"/abs/d/main/evil/" + name, "//d/main/evil/" + name, "/" + base + "/evil/" + name,
		"p0//main/evil/" + name, "p0/d/main//" + name, "p0/d/main/evil//" + name, "a//b/" + name,
		"p0/d/main/nul%00nul/" + name, "p0/d/main/sl%2Fash/" + name, "p0/d/main/..%2F..%2Fevil/" + name,
		"p0/d/main/%2E%2E/" + name, "%2E%2E/%2E%2E/%2E%2E/%2E%2E/" + name, "p0/d/main/%2E/" + name, "p0/d/main/.hidden/" + name, "p0/d/main/%2Ehidden/" + name,
		"p0/d/main/%41/" + name, "p0/d/main/%2e%2e/" + name, "p0/d/main/%/" + name, "p0/d/main/%4/" + name, "p0/d/main/%ZZ/" + name, `p0/d/main/b\ack/` + name,
		"p0/d/main/raw\nline/" + name, "p0/d/main/bell\x07/" + name, "p0/d/main/inv\xffalid/" + name, "p0/d/main/%C3%A9/" + name, "p0/d/main/non\ufffechar/" + name,
		"p0/d/main/" + strings.Repeat("l", 256) + "/" + name, "p0/d/main/" + strings.Repeat("l", 254) + "/" + name,
		long + "/" + long + "/" + long + "/" + long + "/deeper/" + name,
		"p0/d/main/evil/deeper/" + name, "p0/d/main/" + name, name,
		"p0/d/main/evil/20261302T030405Z.db.lz4", "p0/d/main/evil/20260102T250405Z.db.lz4", "p0/d/main/evil/99990102T030405Z.db.lz4", "p0/d/main/evil/19690102T030405Z.db.lz4",
		"p0/d/main/evil/" + name + ".lz4", "p0/d/main/evil/x" + name, "p0/d/main/evil/2026-01-02.db.lz4", "p0/d/main/evil/" + strings.ToLower(name), "p0/d/main/evil/",
	}
	for _, k := range hostile {
		s.put(k, forge(pathOf(strings.TrimSuffix(k, "/"+name)), smallImage(t, "hostile"), at))
	}
	c := settings{pattern: seedPattern(root), target: s.target(seedTemplate)}
	config := c.write(t, 0)
	must(t, os.MkdirAll(root, 0o755))
	must(t, os.WriteFile(base+"/precious", []byte("precious"), 0o600))

	for _, where := range []string{"in place", "elsewhere", "in place again, with -force"} {
		out := root
		args := []string{"-force"}
		if where == "elsewhere" {
			out = filepath.Join(base, "deep/out")
			args = []string{"-output-dir", out}
		} else if where == "in place" {
			args = nil
		}
		before := photo(t, base)
		a := multiDB(t, config, "restore", args...)
		// Creating the tree moves the times of the directories above it.
		samePhoto(t, before, photo(t, base), func(p string) bool { return underDir(out)(p) || strings.HasPrefix(out, p+"/") })
		visible, hidden := tree(out)
		if len(hidden) != 0 {
			t.Errorf("%s: hidden files %q", where, hidden)
		}
		for _, p := range visible {
			if !want[root+strings.TrimPrefix(p, out)] {
				t.Errorf("%s: %q was restored", where, p)
			}
		}
		if len(visible) != len(good) || a.num("restored") != len(good) {
			t.Errorf("%s: restored %q, %v", where, visible, a.summary)
		}
		for _, r := range a.rows {
			if r.Status == "failed" && (r.Path == "" || r.Error == "") {
				t.Errorf("%s: a failure without a name: %+v", where, r)
			}
		}
		if wantCode := min(1, a.num("failed")); a.code != wantCode {
			t.Errorf("%s: exit %d with %d failures\n%s", where, a.code, a.num("failed"), a.stderr)
		}
		if a.num("failed") > 1 { // one of them is a legal key of a name too long for a file
			t.Errorf("%s: %q are taken for databases", where, a.by("failed"))
		}
	}
	l := multiDB(t, config, "list").good(t)
	if got := len(l.rows); l.num("foreign_objects") != len(hostile)+len(good)-got || got > len(good)+1 {
		t.Errorf("list: %v, %d rows", l.summary, got)
	}
	// A key in the command line is not a way out either.
	for _, p := range []string{pathOf("p0/d/main/../../../../../../evil"), base + "/precious", "/etc/passwd", root, "relative.db", root + "/p0/databases/../databases/d/branches/main/tenants/.x.db"} {
		if r := litestream(t, []string{"restore", "-config", config, "-o", filepath.Join(t.TempDir(), "x"), p}); r.code != 1 {
			t.Errorf("restore %q: exit %d\n%s", p, r.code, r.all())
		}
		if a := multiDB(t, config, "backups", p); a.code != 1 {
			t.Errorf("backups %q: exit %d\n%s", p, a.code, a.all())
		}
	}
}

// Keys that no S3 server gives away. Whether they are passed over or the listing is
// refused, nothing but the good ones is restored.
func Test23ImpossibleKeys(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for what, key := range map[string]string{"a NUL": "p0/d/main/nul\x00nul/" + objectAt(at), "2,000 bytes": "p0/d/main/" + strings.Repeat("l", 2000) + "/" + objectAt(at)} {
		s := startFakeS3(t)
		base := t.TempDir()
		root := filepath.Join(base, "data")
		good := root + "/p/databases/d/branches/b/tenants/good.db"
		image := smallImage(t, "good")
		s.put("p/d/b/good/"+objectAt(at), forge(good, image, at))
		s.put(key, forge(root+"/p0/databases/d/branches/main/tenants/nul.db", image, at))
		a := multiDB(t, (settings{pattern: seedPattern(root), target: s.target(seedTemplate)}).write(t, 0), "restore")
		visible, hidden := tree(base)
		visible = slices.DeleteFunc(visible, func(p string) bool { return p == good })
		if len(visible)+len(hidden) != 0 {
			t.Errorf("%s: %q, %q", what, visible, hidden)
		}
		if a.code == 0 {
			if err := compareImage(image, good); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		} else if a.code != 1 || a.stderr == "" {
			t.Errorf("%s: exit %d\n%s", what, a.code, a.all())
		}
	}
}

// Links in the output tree are not followed: neither as a directory nor as the file.
func Test23Links(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	root, target, outside := filepath.Join(base, "data"), filepath.Join(base, "target"), filepath.Join(base, "outside")
	paths := makeFleet(t, root, 40)
	must(t, os.Mkdir(target, 0o755))
	c := settings{pattern: seedPattern(root), target: fileTarget(target), keys: []string{"state_dir: " + filepath.Join(base, "state")}}
	once(t, c)
	want := map[string]lost{}
	for _, p := range paths {
		want[p] = remember(t, p)
	}
	must(t, os.RemoveAll(root))
	config := c.write(t, 0)
	for i, args := range [][]string{nil, {"-force"}, {"-if-db-not-exists"}} {
		for _, elsewhere := range []bool{false, true} {
			out := root
			args := args
			if elsewhere {
				out = filepath.Join(base, fmt.Sprint("out", i))
				args = append([]string{"-output-dir", out}, args...)
			}
			must(t, os.MkdirAll(outside+"/databases", 0o755))
			must(t, os.WriteFile(outside+"/precious", []byte("precious"), 0o600))
			must(t, os.MkdirAll(out+"/p1/databases", 0o755))
			must(t, os.Symlink(outside, out+"/p0"))
			must(t, os.Symlink("../../../outside", out+"/p1/databases/d1"))
			file := out + strings.TrimPrefix(paths[2], root)
			dangling := out + strings.TrimPrefix(paths[3], root)
			must(t, os.MkdirAll(filepath.Dir(file), 0o755))
			must(t, os.MkdirAll(filepath.Dir(dangling), 0o755))
			must(t, os.Symlink(outside+"/precious", file))
			must(t, os.Symlink(outside+"/appears", dangling))
			before := photo(t, outside)
			a := multiDB(t, config, "restore", args...)
			samePhoto(t, before, photo(t, outside), nil)
			bad := 0
			for _, p := range paths {
				to := out + strings.TrimPrefix(p, root)
				behind := strings.HasPrefix(to, out+"/p0/") || strings.HasPrefix(to, out+"/p1/databases/d1/")
				switch {
				case behind:
					bad++
					if r := a.row(p); r.Status != "failed" || r.Error == "" {
						t.Errorf("%v: behind a link: %+v", args, r)
					}
				case to == file || to == dangling:
					r := a.row(p)
					info := must1[os.FileInfo](t)(os.Lstat(to))
					switch {
					case r.Status == "restored" && want[p].isBack(to) == nil && slices.Contains(args, "-force"): // the link itself was replaced
					case r.Status == "failed" || r.Status == "skipped" && slices.Contains(args, "-if-db-not-exists"):
						if info.Mode()&os.ModeSymlink == 0 {
							t.Errorf("%v: %+v, but the link has gone", args, r)
						}
					default:
						t.Errorf("%v: over a link: %+v", args, r)
					}
				default:
					if err := want[p].isBack(to); err != nil {
						t.Errorf("%v: %q: %v", args, to, err)
					}
				}
			}
			if a.code != 1 || a.num("failed") < bad || bad == 0 {
				t.Errorf("%v: exit %d, %v, %d behind links", args, a.code, a.summary, bad)
			}
			must(t, os.RemoveAll(out))
		}
	}
}

// Each byte of an object in turn: no damage goes unseen, by either command, and
// nothing of it is left.
func Test23EachByte(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	o := newOne(t, "state_dir: "+t.TempDir())
	o.target, o.c.target = s.dir(), s.target(s.url())
	first := o.make("b00000", "PRAGMA page_size=512")
	once(t, o.c)
	object := must1[[]byte](t)(os.ReadFile(objects(t, o.target, o.key("b00000"))[0]))
	n := len(object)
	if n > 3000 {
		t.Fatalf("an object of %d bytes is not small", n)
	}
	name := func(i int) string { return fmt.Sprintf("b%05d", i) }
	image := must1[[]byte](t)(os.ReadFile(first))
	var intact []string
	for i := range n + 25 {
		if i > 0 {
			must(t, os.WriteFile(o.path(name(i)), image, 0o644))
		}
		if i >= n {
			intact = append(intact, o.path(name(i)))
		}
	}
	once(t, o.c)
	for i := range n {
		p := objects(t, o.target, o.key(name(i)))[0]
		b := must1[[]byte](t)(os.ReadFile(p))
		if len(b) != n {
			t.Fatalf("objects of %d and %d bytes", n, len(b))
		}
		b[i] ^= 1 << (i % 8)
		must(t, os.WriteFile(p, b, 0o644))
	}
	config := o.c.write(t, 0)
	check := func(what string, a answer) {
		t.Helper()
		if a.code != 1 || a.num("failed") != n || a.num("restored") != len(intact) || !strings.Contains(a.stderr, fmt.Sprintf("%d of %d", n, n+25)) {
			t.Errorf("%s: exit %d, %v\n%s", what, a.code, a.summary, tail(a.stderr, 500))
		}
		for i := range n {
			if r := a.row(o.path(name(i))); r.Status != "failed" || r.Error == "" {
				t.Errorf("%s: byte %d of %d, bit %d: %+v", what, i, n, i%8, r)
			}
		}
	}
	// Over what is there, all of it changed since. One byte of each.
	for i := range n + 25 {
		build(t, o.path(name(i)), "UPDATE t SET v='since' WHERE id=1")
	}
	dir := filepath.Dir(first)
	before := photo(t, dir)
	a := multiDB(t, config, "restore", "-force")
	check("over existing ones", a)
	after := photo(t, dir)
	delete(before, dir)
	delete(after, dir)
	samePhoto(t, before, after, func(p string) bool { return slices.Contains(intact, p) })
	for _, p := range intact {
		if err := compareImage(image, p); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
	// Elsewhere.
	out := t.TempDir()
	check("elsewhere", multiDB(t, config, "restore", "-output-dir", out))
	visible, hidden := tree(out)
	if len(visible) != len(intact) || len(hidden) != 0 {
		t.Errorf("%d files and %d hidden ones, want %d and none", len(visible), len(hidden), len(intact))
	}
	for _, p := range intact {
		if err := compareImage(image, out+strings.TrimPrefix(p, o.root)); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
	// verify sees the same.
	if a := multiDB(t, config, "verify", "-all"); a.code != 1 || a.num("failed") != n || a.num("verified") != n+25 && a.num("verified") != 25 {
		t.Errorf("verify: exit %d, %v\n%s", a.code, a.summary, tail(a.stderr, 500))
	}
	// One at a time.
	before = photo(t, dir)
	delete(before, dir)
	step := envInt("BYTE_STEP", 8)
	parallel((n+step-1)/step, 2, func(i int) {
		i = i*step + i%min(step, n-i*step)
		r := litestream(t, []string{"restore", "-config", config, "-force", o.path(name(i))})
		if r.code != 1 || r.stderr == "" {
			t.Errorf("litestream restore, byte %d of %d: exit %d\n%s", i, n, r.code, r.all())
		}
	})
	after = photo(t, dir)
	delete(after, dir)
	samePhoto(t, before, after, nil)
}

// damaged is a database with a good object and a newer one that is not.
type damaged struct {
	name  string
	made  func(path string, image []byte, at time.Time) []byte
	older int // good objects before it
}

func damages(t testing.TB) []damaged {
	lie := func(change func(tr *trailer)) func(string, []byte, time.Time) []byte {
		return func(path string, image []byte, at time.Time) []byte {
			frame := frameOf(image)
			tr := trailerFor(path, image, frame, at)
			change(&tr)
			return withTrailer(frame, tr)
		}
	}
	edit := func(change func(line string) string) func(string, []byte, time.Time) []byte {
		return func(path string, image []byte, at time.Time) []byte {
			frame := frameOf(image)
			line := string(must1[[]byte](t)(json.Marshal(trailerFor(path, image, frame, at))))
			if change(line) == line {
				t.Fatalf("no change of %s", line)
			}
			return withLine(frame, []byte(change(line)))
		}
	}
	replace := func(from, to string) func(string, []byte, time.Time) []byte {
		return edit(func(line string) string { return strings.Replace(line, from, to, 1) })
	}
	whole := func(change func(b []byte) []byte) func(string, []byte, time.Time) []byte {
		return func(path string, image []byte, at time.Time) []byte { return change(forge(path, image, at)) }
	}
	// ofFrame has a trailer that is true but for what the frame is.
	ofFrame := func(size int64, frame func(image []byte) []byte) func(string, []byte, time.Time) []byte {
		return func(path string, image []byte, at time.Time) []byte {
			f := frame(image)
			tr := trailerFor(path, image, f, at)
			if size != 0 {
				tr.DatabaseSize = size
			}
			return withTrailer(f, tr)
		}
	}
	const claim = int64(1) << 40
	options := func(o ...lz4.Option) func([]byte) []byte {
		return func(image []byte) []byte {
			var b bytes.Buffer
			w := lz4.NewWriter(&b)
			must(t, w.Apply(o...))
			_, err := w.Write(image)
			must(t, err)
			must(t, w.Close())
			return b.Bytes()
		}
	}
	return []damaged{
		{name: "trailer-missing", made: func(_ string, image []byte, _ time.Time) []byte { return frameOf(image) }},
		{name: "trailer-cut", made: whole(func(b []byte) []byte { return b[:len(b)-1] })},
		{name: "trailer-hash-upper-case", made: whole(func(b []byte) []byte { return append(b[:len(b)-64], bytes.ToUpper(b[len(b)-64:])...) })},
		{name: "byte-more", made: whole(func(b []byte) []byte { return append(b, 0) })},
		{name: "byte-before", made: whole(func(b []byte) []byte { return append([]byte{0}, b...) })},
		{name: "twice", made: whole(func(b []byte) []byte { return append(b, b...) })},
		{name: "empty", made: func(string, []byte, time.Time) []byte { return nil }},
		{name: "text", made: func(string, []byte, time.Time) []byte { return bytes.Repeat([]byte("no lz4 "), 1000) }},
		{name: "frame-cut", made: func(path string, image []byte, at time.Time) []byte {
			f := frameOf(image)
			return withTrailer(f[:len(f)-9], trailerFor(path, image, f[:len(f)-9], at))
		}},
		{name: "bytes-between", made: func(path string, image []byte, at time.Time) []byte {
			f := frameOf(image)
			return withTrailer(append(bytes.Clone(f), "between"...), trailerFor(path, image, f, at))
		}},
		{name: "another-path", made: lie(func(tr *trailer) { tr.Path = filepath.Dir(tr.Path) + "/other.db" })},
		{name: "path-outside", made: lie(func(tr *trailer) { tr.Path = "/etc/passwd" })},
		{name: "path-empty", made: lie(func(tr *trailer) { tr.Path = "" })},
		{name: "size-more", made: lie(func(tr *trailer) { tr.DatabaseSize += 4096 })},
		{name: "size-less", made: lie(func(tr *trailer) { tr.DatabaseSize -= 1024 })},
		{name: "size-negative", made: lie(func(tr *trailer) { tr.DatabaseSize = -1 })},
		{name: "size-zero", made: lie(func(tr *trailer) { tr.DatabaseSize = 0 })},
		{name: "size-huge", made: replace(`"database_size":`, `"database_size":99999999999999999999999999`)},
		{name: "sha", made: lie(func(tr *trailer) { tr.LZ4SHA256 = strings.Repeat("ab", 32) })},
		{name: "sha-short", made: lie(func(tr *trailer) { tr.LZ4SHA256 = tr.LZ4SHA256[:62] })},
		{name: "page-size", made: lie(func(tr *trailer) { tr.PageSize *= 2 })},
		{name: "page-size-zero", made: lie(func(tr *trailer) { tr.PageSize = 0 })},
		{name: "format", made: lie(func(tr *trailer) { tr.Format = 2 })},
		{name: "time", made: lie(func(tr *trailer) { tr.SnapshotTime = "yesterday" })},
		{name: "mode-text", made: lie(func(tr *trailer) { tr.Mode = "rw-r--r--" })},
		{name: "uid-negative", made: lie(func(tr *trailer) { tr.UID = -1 })},
		{name: "uid-huge", made: replace(`"uid":`, `"uid":99999999999`)},
		{name: "no-member", made: edit(func(l string) string {
			i, j := strings.Index(l, `"gid"`), strings.Index(l, `"lz4_sha256"`)
			return l[:i] + l[j:]
		})},
		{name: "no-json", made: edit(func(string) string { return "to be or not" })},
		{name: "array", made: edit(func(l string) string { return "[" + l + "]" })},
		{name: "deep", made: edit(func(string) string { return strings.Repeat("[", 15000) })},
		{name: "too-long", made: edit(func(l string) string { return l[:len(l)-1] + `,"x":"` + strings.Repeat("x", 20000) + `"}` })},
		{name: "no-database", made: func(path string, _ []byte, at time.Time) []byte {
			return forge(path, bytes.Repeat([]byte("this is no database. "), 1000), at)
		}},
		{name: "no-content-size", made: ofFrame(0, options(lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(true)))},
		{name: "no-checksum", made: ofFrame(0, func(image []byte) []byte {
			return options(lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(false), lz4.SizeOption(uint64(len(image))))(image)
		})},
		{name: "claims-1tb", made: ofFrame(claim, func(image []byte) []byte { return claimed(frameOf(image), uint64(claim)) })},
		{name: "claims-1tb-in-the-frame-only", made: ofFrame(0, func(image []byte) []byte { return claimed(frameOf(image), uint64(claim)) })},
		{name: "claims-exabytes", made: ofFrame(1<<62, func(image []byte) []byte { return claimed(frameOf(image), 1<<62) })},
		{name: "expands-past-its-claim", made: ofFrame(0, func(image []byte) []byte { return bomb(image, uint64(len(image)), 256<<20) })},
		{name: "expands-and-claims-1tb", made: ofFrame(claim, func(image []byte) []byte { return bomb(image, uint64(claim), 256<<20) })},
		{name: "less-than-its-claim", made: ofFrame(0, func(image []byte) []byte { return claimed(frameOf(image[:len(image)-1024]), uint64(len(image))) })},
	}
}

// claimed gives a frame another content size, and makes its header's checksum right.
func claimed(frame []byte, size uint64) []byte {
	f := bytes.Clone(frame)
	binary.LittleEndian.PutUint64(f[6:], size)
	f[14] = byte(xxh32(f[4:14]) >> 8)
	return f
}

// bomb is a frame that says it holds size bytes, and expands to the image and more
// zeros.
func bomb(image []byte, size uint64, more int) []byte {
	return claimed(frameOf(append(bytes.Clone(image), make([]byte, more)...)), size)
}

// xxh32 is XXH32 with seed 0 of less than 16 bytes, by its specification.
func xxh32(b []byte) uint32 {
	const p2, p3, p4, p5, p1 = 2246822519, 3266489917, 668265263, 374761393, 2654435761
	rol := func(x uint32, r int) uint32 { return x<<r | x>>(32-r) }
	if len(b) >= 16 {
		panic("too long")
	}
	h := uint32(p5) + uint32(len(b))
	for ; len(b) >= 4; b = b[4:] {
		h = rol(h+binary.LittleEndian.Uint32(b)*p3, 17) * p4
	}
	for _, c := range b {
		h = rol(h+uint32(c)*p5, 11) * p1
	}
	h ^= h >> 15
	h *= p2
	h ^= h >> 13
	h *= p3
	return h ^ h>>16
}

// Every kind of damaged or lying newest object: named, nothing replaced, the older
// good one named and, with -fallback, taken; within memory.
func Test23Damages(t *testing.T) {
	t.Parallel()
	s := startS3(t)
	root := filepath.Join(t.TempDir(), "data")
	pathOf := func(name string) string { return root + "/p/databases/d/branches/b/tenants/" + name + ".db" }
	keyOf := func(name string) string { return "p/d/b/" + name + "/" }
	times := []time.Time{time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC), time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC), time.Date(2026, 3, 3, 10, 0, 0, 0, time.UTC)}
	image := smallImage(t, "good")
	image = append(image, make([]byte, 0)...)
	newestImage := smallImage(t, "newest")
	older := map[string]int{} // index of the next older good one, -1: none
	var bad []string
	for i, d := range damages(t) {
		p := pathOf(d.name)
		bad = append(bad, p)
		s.put(keyOf(d.name)+objectAt(times[2]), d.made(p, newestImage, times[2]))
		switch i % 3 {
		case 0: // the one before is good
			s.put(keyOf(d.name)+objectAt(times[1]), forge(p, image, times[1]))
			s.put(keyOf(d.name)+objectAt(times[0]), forge(p, newestImage, times[0]))
			older[p] = 1
		case 1: // only the one before that is
			s.put(keyOf(d.name)+objectAt(times[1]), d.made(p, newestImage, times[1]))
			s.put(keyOf(d.name)+objectAt(times[0]), forge(p, image, times[0]))
			older[p] = 0
		default: // none is
			older[p] = -1
		}
	}
	good := map[string]bool{}
	for i := range 30 {
		name := fmt.Sprintf("good%02d", i)
		good[pathOf(name)] = true
		s.put(keyOf(name)+objectAt(times[2]), forge(pathOf(name), image, times[2]))
	}
	c := settings{pattern: seedPattern(root), target: s.target(s.url()), keys: []string{"memory_limit: 16MB"}}
	config := c.write(t, 0)

	// What the process takes for good ones.
	_, normal := measured(t, time.Minute, verbArgs(config, "restore", "-match", pathOf("good*"), "-output-dir", t.TempDir()), nil)
	limit := normal + 16<<20 + 32<<20

	check := func(what string, a answer, file func(p string) string, fallback bool) {
		t.Helper()
		failed := 0
		for _, p := range bad {
			r := a.row(p)
			if fallback && older[p] >= 0 {
				if r.Status != "restored" || r.Error == "" || !strings.HasSuffix(r.Key, objectAt(times[older[p]])) {
					t.Errorf("%s: %s: %+v", what, filepath.Base(p), r)
				} else if err := compareImage(image, file(p)); err != nil {
					t.Errorf("%s: %s: %v", what, filepath.Base(p), err)
				}
				continue
			}
			failed++
			if r.Status != "failed" || r.Error == "" {
				t.Errorf("%s: %s: %+v", what, filepath.Base(p), r)
			}
			if o := older[p]; o >= 0 && !strings.Contains(r.Error, objectAt(times[o])) {
				t.Errorf("%s: %s: the error does not name %s: %s", what, filepath.Base(p), objectAt(times[o]), r.Error)
			}
		}
		for p := range good {
			if err := compareImage(image, file(p)); err != nil {
				t.Errorf("%s: %s: %v", what, p, err)
			}
		}
		if a.code != 1 || a.num("failed") != failed || a.num("restored") != len(good)+len(bad)-failed {
			t.Errorf("%s: exit %d, %v, want %d failed\n%s", what, a.code, a.summary, failed, tail(a.stderr, 1000))
		}
	}

	out := t.TempDir()
	in := func(p string) string { return out + strings.TrimPrefix(p, root) }
	r, peak := measured(t, time.Minute, verbArgs(config, "restore", "-output-dir", out), nil)
	t.Logf("peak memory %d MB, of good ones %d MB", peak>>20, normal>>20)
	if peak > limit {
		t.Errorf("peak memory %d MB, want at most %d MB", peak>>20, limit>>20)
	}
	check("bare", takeApart(t, r), in, false)
	visible, hidden := tree(out)
	if len(visible) != len(good) || len(hidden) != 0 {
		t.Errorf("%d files, want %d; hidden: %q", len(visible), len(good), hidden)
	}

	// Over existing ones, each with a -wal of its own.
	out = t.TempDir()
	for _, p := range slices.Concat(bad, slices.Collect(maps.Keys(good))) {
		must(t, os.MkdirAll(filepath.Dir(in(p)), 0o755))
		must(t, os.WriteFile(in(p), smallImage(t, "existing"), 0o600))
		must(t, os.WriteFile(in(p)+"-wal", []byte("a -wal"), 0o600))
	}
	before := photo(t, out)
	check("with -force", multiDB(t, config, "restore", "-force", "-output-dir", out), in, false)
	after := photo(t, out)
	for _, p := range bad {
		for _, f := range []string{in(p), in(p) + "-wal"} {
			if before[f] != after[f] {
				t.Errorf("%s: changed from %s to %s", f, before[f], after[f])
			}
		}
	}
	if _, hidden = tree(out); len(hidden) != 0 {
		t.Errorf("hidden files: %q", hidden)
	}
	// One at a time.
	parallel(len(bad), 2, func(i int) {
		p := bad[i]
		r := litestream(t, []string{"restore", "-config", config, "-force", "-o", in(p), p})
		if o := older[p]; r.code != 1 || o >= 0 && !strings.Contains(r.all(), objectAt(times[o])) {
			t.Errorf("litestream restore %s: exit %d\n%s", filepath.Base(p), r.code, tail(r.all(), 1000))
		}
	})
	last := photo(t, out)
	for _, p := range bad {
		for _, f := range []string{in(p), in(p) + "-wal"} {
			if before[f] != last[f] {
				t.Errorf("litestream restore: %s: changed from %s to %s", f, before[f], last[f])
			}
		}
	}
	// And the older ones in their place.
	check("with -fallback", multiDB(t, config, "restore", "-force", "-fallback", "-output-dir", out), in, true)

	// backups marks them.
	b := multiDB(t, config, "backups", bad[0])
	if b.code != 1 || len(b.rows) != 3 || b.rows[2].Status != "failed" || b.rows[2].Error == "" || b.rows[1].Status != "ok" || b.num("failed") != 1 {
		t.Errorf("backups: exit %d, %+v, %v", b.code, b.rows, b.summary)
	}
}

// A mode that gives more than it may, and an owner that is somebody: the trailer is
// the target's word. It is never a set-user-id file.
func Test23Mode(t *testing.T) {
	t.Parallel()
	root, target := filepath.Join(t.TempDir(), "data"), t.TempDir()
	at := time.Date(2026, 3, 3, 10, 0, 0, 0, time.UTC)
	image := smallImage(t, "x")
	for _, mode := range []string{"4755", "2755", "1777", "7777", "10644", "-644", "0999", ""} {
		name := "m" + mode
		p := root + "/p/databases/d/branches/b/tenants/" + name + ".db"
		frame := frameOf(image)
		tr := trailerFor(p, image, frame, at)
		tr.Mode = mode
		k := filepath.Join(target, "p/d/b", name, objectAt(at))
		must(t, os.MkdirAll(filepath.Dir(k), 0o755))
		must(t, os.WriteFile(k, withTrailer(frame, tr), 0o644))
	}
	a := multiDB(t, (settings{pattern: seedPattern(root), target: fileTarget(target)}).write(t, 0), "restore")
	visible, hidden := tree(root)
	if len(hidden) != 0 {
		t.Errorf("hidden: %q", hidden)
	}
	for _, p := range visible {
		if m := must1[os.FileInfo](t)(os.Lstat(p)).Mode(); m&^0o777 != 0 {
			t.Errorf("%s was restored with mode %v", p, m)
		}
	}
	if a.num("restored") != len(visible) || a.num("failed") != 8-len(visible) || a.row(root+"/p/databases/d/branches/b/tenants/m.db").Status != "failed" {
		t.Errorf("%v, %d files", a.summary, len(visible))
	}
}
