package e2e

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// intake takes a copy of every object on its way to a target.
type intake struct {
	shelf  *shelf
	slots  map[string]int // by key prefix
	window atomic.Bool    // objects of one name may replace each other
	active atomic.Int64   // requests
}

func (in *intake) split(key string) (slot int, name string, ok bool) {
	slot, ok = in.slots[filepath.Dir(key)]
	return slot, filepath.Base(key), ok && objectNamed.MatchString(filepath.Base(key))
}

func (in *intake) put(key string, body []byte, at int64) {
	if slot, name, ok := in.split(key); ok {
		x := &arrival{slot: slot, name: name, at: at, window: in.window.Load(), body: in.shelf.a.submit(in.shelf.name+"/"+key, body)}
		in.shelf.arrive(x)
	}
}

// unread notes that an object came before the one of a time, which replaced it.
func (in *intake) unread(key string, at int64) {
	if slot, _, ok := in.split(key); ok {
		in.shelf.unread(slot, at)
	}
}

func (in *intake) remove(key string) {
	if slot, name, ok := in.split(key); ok {
		in.shelf.arrive(&arrival{slot: slot, name: name, at: time.Now().UnixNano(), removed: true})
	}
}

// tee is the intake of an S3 server: it stands right before it, behind whatever makes
// faults, so it sees what the server sees.
type tee struct {
	*intake
	listener net.Listener
	target   string
}

func startTee(t testing.TB, in *intake, target string) *tee {
	t.Helper()
	e := &tee{intake: in, target: target, listener: must1[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))}
	srv := &http.Server{Handler: e, ErrorLog: quietLog}
	go func() { _ = srv.Serve(e.listener) }()
	t.Cleanup(func() { srv.Close() })
	return e
}

func (e *tee) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.active.Add(1)
	defer e.active.Add(-1)
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler) // the replicator was killed, or worse
	}
	key := strings.TrimPrefix(r.URL.Path, "/"+bucket+"/")
	out := r.Clone(r.Context())
	out.RequestURI = ""
	out.URL.Scheme, out.URL.Host = "http", e.target
	out.Body = io.NopCloser(bytes.NewReader(body))
	a, err := roundTrip(out)
	var at int64
	if err == nil && a.status == http.StatusOK {
		at = time.Now().UnixNano()
	}
	switch {
	case r.Method == http.MethodPut:
		e.put(key, body, at)
	case r.Method == http.MethodDelete:
		e.remove(key)
	case r.Method == http.MethodPost && r.URL.Query().Has("delete"):
		var list struct {
			Object []struct{ Key string }
		}
		if err := xml.Unmarshal(body, &list); err != nil {
			panic(err)
		}
		for _, o := range list.Object {
			e.remove(o.Key)
		}
	}
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	maps.Copy(w.Header(), a.header)
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body)
}

// watcher tells what happens in directories, in order and without a gap.
type watcher struct {
	f    *os.File
	dirs map[int32]string
	done sync.WaitGroup
	lost atomic.Int64 // times that the kernel's queue was full
}

// watchDirs calls f for each event in the directories, which exist.
func watchDirs(t testing.TB, dirs []string, mask uint32, f func(dir, name string, mask uint32)) *watcher {
	t.Helper()
	fd := must1[int](t)(unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK))
	w := &watcher{f: os.NewFile(uintptr(fd), "inotify"), dirs: map[int32]string{}}
	for _, d := range dirs {
		wd, err := unix.InotifyAddWatch(fd, d, mask|unix.IN_ONLYDIR)
		must(t, err)
		w.dirs[int32(wd)] = d
	}
	w.done.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := w.f.Read(buf)
			if err != nil {
				return
			}
			for b := buf[:n]; len(b) > 0; {
				e := (*unix.InotifyEvent)(unsafe.Pointer(&b[0]))
				end := unix.SizeofInotifyEvent + int(e.Len)
				name := string(bytes.TrimRight(b[unix.SizeofInotifyEvent:end], "\x00"))
				if e.Mask&unix.IN_Q_OVERFLOW != 0 {
					w.lost.Add(1)
				} else {
					f(w.dirs[e.Wd], name, e.Mask)
				}
				b = b[end:]
			}
		}
	})
	return w
}

func (w *watcher) close() { w.f.Close(); w.done.Wait() }

// drain returns when all that has happened before has been told: a file in dir,
// which is watched for creations, comes after it.
func (w *watcher) drain(t testing.TB, dir string, seen *atomic.Int64) {
	t.Helper()
	before := seen.Load()
	f := must1[*os.File](t)(os.CreateTemp(dir, markPrefix))
	f.Close()
	must(t, os.Remove(f.Name()))
	waitFor(t, 30*time.Second, "the watch to see a file", func() bool { return seen.Load() > before })
}

const markPrefix = "e2e-mark-"

// directory is the intake of a file target: each object that is renamed into its place
// is opened at that moment, and read behind, as the audit takes its time: by then another
// one may have its name.
type directory struct {
	*intake
	t      testing.TB
	path   string
	watch  *watcher
	events chan event
	done   sync.WaitGroup
	marks  atomic.Int64
	missed atomic.Int64     // objects that were replaced before they could be opened
	last   map[string]int64 // by key: when what was opened last had come
}

const neverOpened = -1 // in place of a time

type event struct {
	key  string
	mask uint32
	f    *os.File // of what was renamed to key, nil: it was gone
	at   int64    // when it came
}

func watchTarget(t testing.TB, in *intake, path string) *directory {
	t.Helper()
	d := &directory{intake: in, t: t, path: path, events: make(chan event, 10000), last: map[string]int64{}}
	dirs := []string{path}
	for key := range in.slots {
		dir := filepath.Join(path, key)
		must(t, os.MkdirAll(dir, 0o700))
		dirs = append(dirs, dir)
	}
	d.done.Go(func() {
		for e := range d.events {
			d.take(e)
		}
	})
	d.watch = watchDirs(t, dirs, unix.IN_MOVED_TO|unix.IN_DELETE|unix.IN_CREATE, d.see)
	return d
}

func (d *directory) see(dir, name string, mask uint32) {
	path := filepath.Join(dir, name)
	e := event{mask: mask}
	e.key, _ = filepath.Rel(d.path, path)
	if mask&unix.IN_MOVED_TO != 0 {
		e.f, e.at = openArrival(path)
	}
	d.events <- e
}

// openArrival tells the ctime as well: to be replaced changes it, too.
func openArrival(path string) (*os.File, int64) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0
	}
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Nlink == 0 {
		f.Close()
		return nil, 0
	}
	return f, st.Ctim.Nano()
}

func (d *directory) take(e event) {
	switch {
	case strings.HasPrefix(filepath.Base(e.key), markPrefix):
		if e.mask&unix.IN_CREATE != 0 {
			d.marks.Add(1)
		}
	case e.mask&unix.IN_DELETE != 0:
		d.remove(e.key)
	case e.mask&unix.IN_MOVED_TO != 0:
		d.takeObject(e)
	}
}

func (d *directory) takeObject(e event) {
	if e.f == nil {
		d.missed.Add(1)
		d.last[e.key] = neverOpened
		return
	}
	defer e.f.Close()
	if d.last[e.key] == neverOpened {
		d.unread(e.key, e.at)
	}
	if d.last[e.key] == e.at { // opened for the event before this one
		d.missed.Add(1)
		d.unread(e.key, e.at)
		return
	}
	body, err := io.ReadAll(e.f)
	if err != nil {
		d.missed.Add(1)
		return
	}
	d.last[e.key] = e.at
	d.put(e.key, body, e.at)
}

func (d *directory) close() {
	d.watch.close()
	close(d.events)
	d.done.Wait()
}

func (d *directory) idle() { d.watch.drain(d.t, d.path, &d.marks) }

func lz4Program(path string) ([]byte, error) {
	out, err := exec.Command("lz4", "-d", "-q", "-c", path).Output()
	if err != nil {
		err = fmt.Errorf("lz4 -d: %w", err)
	}
	return out, err
}
