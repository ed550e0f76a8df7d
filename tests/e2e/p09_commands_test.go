package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// multi-db plan needs no network and writes nothing; status knows what is in the
// target by the state file.
func TestCommandsPlanAndStatus(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	paths := makeFleet(t, root, 30)
	nowhere := settings{pattern: seedPattern(root), target: block("s3", "bucket: bkt", `path: "`+seedTemplate+`"`, "endpoint: http://127.0.0.1:1")}
	before := photo(t, root)
	config := nowhere.write(t, 0)
	r := litestream(t, []string{"multi-db", "plan", "-config", config})
	if r.code != 0 || !strings.Contains(r.stdout, "30") || !strings.Contains(r.stdout, root) {
		t.Errorf("plan: exit %d\n%s", r.code, r.all())
	}
	var plan struct {
		Databases int `json:"databases"`
		Samples   []struct{ Path, Key string }
	}
	r = litestream(t, []string{"multi-db", "plan", "-json", "-config", config})
	if err := json.Unmarshal([]byte(r.stdout), &plan); r.code != 0 || err != nil || plan.Databases != 30 || len(plan.Samples) == 0 {
		t.Errorf("plan -json: exit %d, %v\n%s", r.code, err, r.all())
	}
	for _, s := range plan.Samples {
		if s.Key != keyOf(root, s.Path) {
			t.Errorf("sample %q has key %q, want %q", s.Path, s.Key, keyOf(root, s.Path))
		}
	}
	samePhoto(t, before, photo(t, root), nil)

	type state struct{ Databases, Synced, Changed, Never int }
	status := func(c settings) (s state) {
		t.Helper()
		r := litestream(t, []string{"multi-db", "status", "-json", "-config", c.write(t, 0)})
		if err := json.Unmarshal([]byte(r.stdout), &s); err != nil {
			t.Fatalf("status -json: exit %d, %v\n%s", r.code, err, r.all())
		}
		return s
	}
	if s := status(nowhere); s.Databases != 30 || s.Synced != 0 || s.Changed != 0 { // there is no state to say more
		t.Errorf("status before the first cycle: %+v", s)
	}
	samePhoto(t, before, photo(t, root), nil)
	c := settings{pattern: seedPattern(root), target: fileTarget(t.TempDir())}
	once(t, c)
	change(t, paths[0])
	change(t, paths[1])
	must(t, os.Remove(paths[2]))
	simple(t, strings.Replace(paths[3], ".db", "-new.db", 1))
	if s := status(c); s != (state{30, 27, 2, 1}) {
		t.Errorf("status after changes: %+v", s)
	}
	for _, args := range [][]string{{"multi-db", "nope"}, {"multi-db", "plan", "-config", "/nowhere.yml"}, {"multi-db", "status", "extra", "-config", config}} {
		if r := litestream(t, args); r.code != 1 || r.stderr == "" {
			t.Errorf("%v: exit %d\n%s", args, r.code, r.all())
		}
	}
	none := settings{pattern: seedPattern(t.TempDir()), target: c.target}
	if r := litestream(t, []string{"multi-db", "plan", "-config", none.write(t, 0)}); r.code != 1 {
		t.Errorf("a plan that matches nothing: exit %d\n%s", r.code, r.all())
	}
}
