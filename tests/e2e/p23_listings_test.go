package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Point 3, listings that are malformed or have no end: an error soon, within memory,
// and never a database that is not one.
func Test23Listings(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 3, 10, 0, 0, 0, time.UTC)
	name := objectAt(at)
	key := func(i int) string { return fmt.Sprintf("b/p%08d/d/m/t/%s", i, name) }
	keys := func(from, n int) (out []string) {
		for i := range n {
			out = append(out, key(from+i))
		}
		return out
	}
	size := func(string) int { return 4000 }
	flood := func(w http.ResponseWriter, r *http.Request, start, what string) {
		w.Header().Set("Content-Type", "application/xml")
		_, _ = io.WriteString(w, start)
		block := strings.Repeat(what, 1+65536/len(what))
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, block); err != nil {
				return
			}
		}
	}
	head := `<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>false</IsTruncated><EncodingType>url</EncodingType>`
	entry := `<Contents><Key>` + key(5) + `</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><Size>4000</Size></Contents>`
	raw := func(body string) func(http.ResponseWriter, *http.Request, int64) {
		return func(w http.ResponseWriter, _ *http.Request, _ int64) {
			w.Header().Set("Content-Type", "application/xml")
			_, _ = io.WriteString(w, body)
		}
	}
	for _, tt := range []struct {
		name string
		list func(w http.ResponseWriter, r *http.Request, n int64)
		slow bool // one command will do
	}{
		{name: "the same token for ever", list: func(w http.ResponseWriter, _ *http.Request, n int64) {
			writeXML(w, page(keys(int(n)*1000, 1000), size, "same"))
		}},
		{name: "the same page for ever", list: func(w http.ResponseWriter, _ *http.Request, n int64) {
			writeXML(w, page(keys(0, 1000), size, fmt.Sprint("token", n)))
		}},
		{name: "empty pages for ever", slow: true, list: func(w http.ResponseWriter, _ *http.Request, n int64) {
			writeXML(w, page(nil, size, fmt.Sprint("token", n)))
		}},
		{name: "descending pages", list: func(w http.ResponseWriter, _ *http.Request, n int64) {
			writeXML(w, page(keys(90_000_000-int(n)*1000, 1000), size, fmt.Sprint("token", n)))
		}},
		{name: "descending keys", list: func(w http.ResponseWriter, _ *http.Request, _ int64) {
			writeXML(w, page([]string{key(3), key(2), key(1)}, size, ""))
		}},
		{name: "truncated without a token", list: func(w http.ResponseWriter, _ *http.Request, _ int64) {
			writeXML(w, strings.Replace(page(keys(0, 3), size, ""), ">false<", ">true<", 1))
		}},
		{name: "10 MB of garbage", list: raw(strings.Repeat("garbage & nothing <", 10<<20/19))},
		{name: "10 MB of zeros", list: raw(strings.Repeat("\x00", 10<<20))},
		{name: "empty", list: raw("")},
		{name: "unclosed", list: raw(head + entry)},
		{name: "unclosed entry", list: raw(head + `<Contents><Key>` + key(1))},
		{name: "doctype", list: raw(`<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>` + strings.TrimPrefix(head, `<?xml version="1.0" encoding="UTF-8"?>`) +
			strings.Replace(entry, key(5), "&b;", 1) + `</ListBucketResult>`)},
		{name: "external entity", list: raw(`<?xml version="1.0"?><!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>&f;</Key><Size>1</Size></Contents></ListBucketResult>`)},
		{name: "another document", list: raw(`<?xml version="1.0" encoding="UTF-8"?><html><body>` + entry + `</body></html>`)},
		{name: "html", list: raw("<html><body>Welcome to the hotel<br>log in</body></html>")},
		{name: "an error with status 200", list: raw(`<?xml version="1.0" encoding="UTF-8"?><Error><Code>InternalError</Code><Message>x</Message></Error>`)},
		{name: "a size that is none", list: raw(head + strings.Replace(entry, "4000", "-1", 1) + `</ListBucketResult>`)},
		{name: "a huge size", list: raw(head + strings.Replace(entry, "4000", strings.Repeat("9", 40), 1) + `</ListBucketResult>`)},
		{name: "a huge key", list: raw(head + strings.Replace(entry, key(5), "b/"+strings.Repeat("k", 5<<20), 1) + `</ListBucketResult>`)},
		{name: "deep", list: raw(head + strings.Repeat("<a>", 200_000))},
		{name: "two million keys in a page", list: func(w http.ResponseWriter, r *http.Request, _ int64) {
			w.Header().Set("Content-Type", "application/xml")
			_, _ = io.WriteString(w, head)
			for i := range 2_000_000 {
				if _, err := io.WriteString(w, strings.Replace(entry, key(5), key(i), 1)); err != nil {
					return
				}
			}
			_, _ = io.WriteString(w, "</ListBucketResult>")
		}},
		{name: "outside of the prefix", list: func(w http.ResponseWriter, _ *http.Request, _ int64) {
			writeXML(w, page([]string{"a/p00000001/d/m/t/" + name, "b", "bb/p/d/m/t/" + name, "c/p/d/m/t/" + name}, size, ""))
		}},
		{name: "content-length too long", list: func(w http.ResponseWriter, _ *http.Request, _ int64) {
			b := page(keys(0, 3), size, "")
			w.Header().Set("Content-Length", fmt.Sprint(len(b)+1000))
			_, _ = io.WriteString(w, b)
			panic(http.ErrAbortHandler)
		}},
		{name: "content-length too short", list: func(w http.ResponseWriter, r *http.Request, _ int64) {
			b := page(keys(0, 3), size, "")
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%s", len(b)/2, b)
				conn.Close()
			}
		}},
		{name: "a body without end", list: func(w http.ResponseWriter, r *http.Request, _ int64) { flood(w, r, head, entry) }},
		{name: "a body of blanks without end", list: func(w http.ResponseWriter, r *http.Request, _ int64) { flood(w, r, head, " \n") }},
		{name: "a comment without end", slow: true, list: func(w http.ResponseWriter, r *http.Request, _ int64) { flood(w, r, head+"<!-- ", "comment ") }},
		{name: "a key without end", list: func(w http.ResponseWriter, r *http.Request, _ int64) { flood(w, r, head+"<Contents><Key>", "k") }},
		{name: "headers without end", list: func(w http.ResponseWriter, r *http.Request, _ int64) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n")
			for i := 0; ; i++ {
				if _, err := fmt.Fprintf(conn, "X-%d: %s\r\n", i, strings.Repeat("h", 1000)); err != nil {
					return
				}
			}
		}},
		{name: "redirects for ever", list: func(w http.ResponseWriter, r *http.Request, _ int64) {
			http.Redirect(w, r, r.URL.String(), http.StatusTemporaryRedirect)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := startFakeS3(t)
			s.list = func(w http.ResponseWriter, r *http.Request, n int64) bool { tt.list(w, r, n); return true }
			s.get = func(w http.ResponseWriter, _ *http.Request, _ string) bool { // no object is there
				http.Error(w, "", http.StatusNotFound)
				return true
			}
			base := t.TempDir()
			root, out := filepath.Join(base, "data"), filepath.Join(base, "out")
			c := settings{pattern: seedPattern(root), target: s.target("b/" + seedTemplate), keys: []string{"memory_limit: 16MB"}}
			config := c.write(t, 0)
			commands := [][]string{
				verbArgs(config, "restore", "-output-dir", out),
				verbArgs(config, "list"),
				verbArgs(config, "purge", "-match", "*", "-confirm", "1"),
				{"restore", "-config", config, "-o", filepath.Join(base, "x.db"), root + "/p00000001/databases/d/branches/m/tenants/t.db"},
			}
			if tt.slow {
				commands = commands[:1]
			}
			for _, args := range commands {
				start := time.Now()
				r, peak := measured(t, 45*time.Second, args, nil)
				if r.code != 1 || r.stderr == "" {
					t.Errorf("%v: exit %d\n%s\n%s", args[:2], r.code, tail(r.stdout, 300), tail(r.stderr, 1000))
				}
				if strings.Contains(r.all(), "root:") {
					t.Errorf("%v: a file was read\n%s", args[:2], r.all())
				}
				if peak > 220<<20 {
					t.Errorf("%v: peak memory %d MB", args[:2], peak>>20)
				}
				if took := time.Since(start); took > 40*time.Second {
					t.Errorf("%v: took %v", args[:2], took)
				}
				if len(r.stderr) > 20000 && !strings.Contains(r.stderr, "failed") {
					t.Errorf("%v: %d bytes on stderr", args[:2], len(r.stderr))
				}
			}
			if visible, hidden := tree(base); len(visible)+len(hidden) != 0 {
				t.Errorf("restored %q %q", visible, hidden)
			}
			if n := s.lists.Load(); n > 4100 { // a thousand pages without a key are enough
				t.Errorf("%d LISTs", n)
			}
		})
	}
}

// Fresh keys for ever, in order: nothing is wrong with that but that it has no end. It
// goes on within memory, and can be stopped.
func Test23EndlessListing(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 3, 10, 0, 0, 0, time.UTC)
	for _, verb := range []string{"list", "restore -dry-run", "verify", "purge -match *"} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			s := startFakeS3(t)
			s.list = func(w http.ResponseWriter, _ *http.Request, n int64) bool {
				var keys []string
				for i := range 1000 {
					keys = append(keys, fmt.Sprintf("p%08d/d/m/t/%s", int(n)*1000+i, objectAt(at)))
				}
				writeXML(w, page(keys, func(string) int { return 4000 }, fmt.Sprint("token", n)))
				return true
			}
			root := filepath.Join(t.TempDir(), "data")
			must(t, os.Mkdir(root, 0o755))
			c := settings{pattern: seedPattern(root), target: s.target(seedTemplate), keys: []string{"memory_limit: 16MB"}}
			words := strings.Fields(verb)
			var early, signaled int64
			var at time.Time
			r, peak := measured(t, 90*time.Second, verbArgs(c.write(t, 0), words[0], words[1:]...), func(p *os.Process) {
				n := s.lists.Load()
				if early == 0 && n >= 30 {
					early = peakOf(p.Pid)
				}
				if signaled == 0 && n >= int64(envInt("ENDLESS_PAGES", 300)) {
					signaled = n
					at = time.Now()
					_ = p.Signal(os.Interrupt)
				}
			})
			if signaled == 0 {
				t.Fatalf("ended by itself after %d LISTs: exit %d\n%s", s.lists.Load(), r.code, tail(r.all(), 500))
			}
			if took := time.Since(at); took > 5*time.Second || r.code == 0 {
				t.Errorf("stopped after %v with exit %d\n%s", took, r.code, tail(r.stderr, 500))
			}
			t.Logf("peak %d MB after 30 pages, %d MB after %d", early>>20, peak>>20, signaled)
			if peak > early+(32<<20) {
				t.Errorf("memory grows with the listing: %d MB after 30 pages, %d MB after %d", early>>20, peak>>20, signaled)
			}
		})
	}
}

// Bodies of objects that are not what the listing or the headers said.
func Test23Bodies(t *testing.T) {
	t.Parallel()
	s := startFakeS3(t)
	at := time.Date(2026, 3, 3, 10, 0, 0, 0, time.UTC)
	root := filepath.Join(t.TempDir(), "data")
	image := smallImage(t, "x")
	pathOf := func(name string) string { return root + "/p/databases/d/branches/b/tenants/" + name + ".db" }
	bad := []string{"gone", "error", "cut", "longer", "endless", "redirect", "denied", "html", "range"}
	names := append([]string{}, bad...)
	for i := range 20 {
		names = append(names, fmt.Sprintf("good%02d", i))
	}
	for _, n := range names {
		s.put("p/d/b/"+n+"/"+objectAt(at), forge(pathOf(n), image, at))
	}
	var sent atomic.Int64
	s.get = func(w http.ResponseWriter, r *http.Request, key string) bool {
		b, _ := s.object(key)
		switch strings.Split(key, "/")[3] {
		case "gone":
			http.Error(w, "", http.StatusNotFound)
		case "error":
			http.Error(w, "", http.StatusInternalServerError)
		case "denied":
			http.Error(w, "", http.StatusForbidden)
		case "cut":
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
			_, _ = w.Write(b[:len(b)/2])
			panic(http.ErrAbortHandler)
		case "longer":
			_, _ = w.Write(append(append([]byte{}, b...), b...))
		case "endless":
			w.WriteHeader(http.StatusOK)
			block := make([]byte, 64<<10)
			copy(block, b)
			for r.Context().Err() == nil && sent.Load() < 4<<30 {
				n, err := w.Write(block)
				sent.Add(int64(n))
				if err != nil {
					break
				}
			}
		case "redirect":
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
		case "html":
			_, _ = io.WriteString(w, "<html>Welcome to the hotel</html>")
		case "range":
			w.Header().Set("Content-Range", "bytes 10-20/30")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(b)
		default:
			return false
		}
		return true
	}
	c := settings{pattern: seedPattern(root), target: s.target(seedTemplate), keys: []string{"memory_limit: 16MB"}}
	r, peak := measured(t, 60*time.Second, verbArgs(c.write(t, 0), "restore"), nil)
	a := takeApart(t, r)
	if a.code != 1 || a.num("failed") < len(bad)-1 || a.num("restored") < 20 || a.num("restored")+a.num("failed") != len(names) {
		t.Errorf("exit %d, %v\n%s", a.code, a.summary, tail(a.stderr, 2000))
	}
	for _, n := range bad {
		if r := a.row(pathOf(n)); r.Status == "failed" && r.Error == "" || r.Status != "failed" && n != "range" {
			t.Errorf("%s: %+v", n, r)
		}
	}
	visible, hidden := tree(root)
	for _, p := range visible {
		if err := compareImage(image, p); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
	if len(visible) != a.num("restored") || len(hidden) != 0 {
		t.Errorf("%d files, %q", len(visible), hidden)
	}
	if sent.Load() > 512<<20 {
		t.Errorf("%d MB of an object of %d bytes were taken", sent.Load()>>20, len(forge("x", image, at)))
	}
	if peak > 220<<20 {
		t.Errorf("peak memory %d MB", peak>>20)
	}
}
