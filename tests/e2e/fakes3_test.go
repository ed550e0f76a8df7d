package e2e

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fakeS3 is an S3 server that says what no honest one would: any key, any listing,
// any body. It looks at no signature, and keeps its objects in memory.
type fakeS3 struct {
	t       testing.TB
	url     string
	mu      sync.Mutex
	objects map[string][]byte
	lists   atomic.Int64
	gets    atomic.Int64
	// These answer instead, if they are set and return true. n counts LISTs from 1.
	list func(w http.ResponseWriter, r *http.Request, n int64) bool
	get  func(w http.ResponseWriter, r *http.Request, key string) bool
}

func startFakeS3(t testing.TB) *fakeS3 {
	t.Helper()
	l := must1[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	f := &fakeS3{t: t, url: "http://" + l.Addr().String(), objects: map[string][]byte{}}
	srv := &http.Server{Handler: f, ErrorLog: quietLog}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
	return f
}

func (f *fakeS3) target(template string, extra ...string) string {
	return block("s3", append([]string{"region: us-east-1", "bucket: " + bucket, `path: "` + template + `"`, "endpoint: " + f.url,
		"access_key_id: " + accessKey, "secret_access_key: " + secretKey}, extra...)...)
}

func (f *fakeS3) put(key string, b []byte) {
	f.mu.Lock()
	f.objects[key] = b
	f.mu.Unlock()
}

func (f *fakeS3) keys(prefix string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for k := range f.objects {
		if strings.HasPrefix(k, prefix) {
			out = append(out, k)
		}
	}
	sort.Strings(out)
	return out
}

func (f *fakeS3) object(key string) ([]byte, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.objects[key]
	return b, ok
}

func (f *fakeS3) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/"+bucket), "/")
	q := r.URL.Query()
	switch {
	case r.Method == http.MethodGet && key == "" && q.Has("uploads"):
		writeXML(w, `<ListMultipartUploadsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Bucket>`+bucket+`</Bucket><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>`)
	case r.Method == http.MethodGet && key == "":
		n := f.lists.Add(1)
		if f.list != nil && f.list(w, r, n) {
			return
		}
		f.serveList(w, q)
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		f.gets.Add(1)
		if f.get != nil && f.get(w, r, key) {
			return
		}
		b, ok := f.object(key)
		if !ok {
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>`)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	case r.Method == http.MethodPut:
		b, err := io.ReadAll(r.Body)
		if err == nil {
			f.put(key, b)
			w.Header().Set("ETag", `"0"`)
		}
	case r.Method == http.MethodPost && q.Has("delete"):
		var d struct {
			Object []struct{ Key string }
		}
		if err := xml.NewDecoder(r.Body).Decode(&d); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		f.mu.Lock()
		for _, o := range d.Object {
			delete(f.objects, o.Key)
		}
		f.mu.Unlock()
		writeXML(w, `<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"></DeleteResult>`)
	default:
		http.Error(w, "", http.StatusNotImplemented)
	}
}

func writeXML(w http.ResponseWriter, body string) {
	w.Header().Set("Content-Type", "application/xml")
	_, _ = io.WriteString(w, `<?xml version="1.0" encoding="UTF-8"?>`+"\n"+body)
}

// page is a listing of objects of size bytes; a token makes it one of several.
func page(keys []string, size func(key string) int, token string) string {
	var b strings.Builder
	b.WriteString(`<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>` + bucket + `</Name><Prefix></Prefix>`)
	fmt.Fprintf(&b, `<KeyCount>%d</KeyCount><MaxKeys>1000</MaxKeys><EncodingType>url</EncodingType><IsTruncated>%v</IsTruncated>`, len(keys), token != "")
	if token != "" {
		b.WriteString(`<NextContinuationToken>` + token + `</NextContinuationToken>`)
	}
	for _, k := range keys {
		fmt.Fprintf(&b, `<Contents><Key>%s</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>&quot;0123456789abcdef0123456789abcdef&quot;</ETag><Size>%d</Size><StorageClass>STANDARD</StorageClass></Contents>`,
			strings.ReplaceAll(url.QueryEscape(k), "%2F", "/"), size(k))
	}
	b.WriteString(`</ListBucketResult>`)
	return b.String()
}

func (f *fakeS3) size(key string) int {
	b, _ := f.object(key)
	return len(b)
}

func (f *fakeS3) serveList(w http.ResponseWriter, q url.Values) {
	keys := f.keys(q.Get("prefix"))
	after := max(q.Get("start-after"), q.Get("continuation-token"))
	if after != "" {
		keys = keys[sort.Search(len(keys), func(i int) bool { return keys[i] > after }):]
	}
	token := ""
	if len(keys) > 1000 {
		keys = keys[:1000]
		token = keys[999]
	}
	writeXML(w, page(keys, f.size, token))
}
