// Package sigv4_test compares the C core's signatures with those of the AWS SDK
// for Go, over random requests. The core signs through tests/unit/sigv4_bridge.c:
// the program in $US_SIGV4_BRIDGE, else one compiled here.
package sigv4_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/smithy-go/encoding/httpbinding"
)

const requests = 2000

type request struct {
	method, host, path string // path is raw, with its leading slash
	query              map[string]string
	headers            map[string]string
	payload            []byte
	creds              aws.Credentials
	region             string
	at                 time.Time
}

func bridge(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("US_SIGV4_BRIDGE"); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "sigv4_bridge")
	root := filepath.Join("..", "..")
	cmd := exec.Command("gcc", "-std=gnu17", "-O1", "-D_GNU_SOURCE", "-o", path,
		"tests/unit/sigv4_bridge.c", "csrc/store/sigv4.c", "csrc/store/text.c",
		"csrc/base/error.c", "csrc/base/alloc.c", "-lssl", "-lcrypto")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the bridge: %v\n%s", err, out)
	}
	return path
}

// pieces are what paths and values are made of: plain bytes, everything that
// needs an escape somewhere, UTF-8, and escapes that must be escaped again.
var pieces = []string{"a", "Z", "0", "-", "_", ".", "~", " ", "  ", "+", "%", "%20", "%2F", "&", "=", "?",
	"#", ";", ":", "@", "$", ",", "!", "*", "'", "\"", "(", ")", "[", "]", "{", "}", "<", ">", "|", "\\",
	"^", "`", "é", "€", "😀", "日本", "tenant", "20260102T030405Z.db.lz4"}

func text(r *rand.Rand, max int) string {
	var b strings.Builder
	for n := r.Intn(max + 1); n > 0; n-- {
		b.WriteString(pieces[r.Intn(len(pieces))])
	}
	return b.String()
}

func ascii(r *rand.Rand, alphabet string, min, max int) string {
	b := make([]byte, min+r.Intn(max-min+1))
	for i := range b {
		b[i] = alphabet[r.Intn(len(alphabet))]
	}
	return string(b)
}

const alnum = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

func random(r *rand.Rand) request {
	q := request{
		method:  []string{"GET", "PUT", "DELETE", "HEAD", "POST"}[r.Intn(5)],
		query:   map[string]string{},
		headers: map[string]string{},
		region:  []string{"us-east-1", "eu-central-1", "auto", "cn-north-1"}[r.Intn(4)],
		at:      time.Unix(1_500_000_000+r.Int63n(600_000_000), 0).UTC(),
		creds: aws.Credentials{
			AccessKeyID:     ascii(r, alnum, 16, 128),
			SecretAccessKey: ascii(r, alnum+"/+=", 1, 80),
		},
	}
	q.host = []string{"bucket.s3.amazonaws.com", "127.0.0.1:9000", "[::1]:7070", "s3.example.com"}[r.Intn(4)]
	q.path = "/bucket"
	for n := r.Intn(5); n > 0; n-- {
		q.path += "/" + text(r, 6) // empty segments too
	}
	for n := r.Intn(5); n > 0; n-- {
		q.query[ascii(r, alnum+"-", 1, 12)] = text(r, 8)
	}
	for n := r.Intn(4); n > 0; n-- {
		value := ascii(r, alnum+"  :;,=\"/", 0, 40)
		q.headers["x-amz-meta-"+strings.ToLower(ascii(r, alnum, 1, 10))] = value
	}
	if r.Intn(2) == 0 {
		q.headers["range"] = fmt.Sprintf("bytes=%d-%d", r.Intn(100), 100+r.Intn(100))
	}
	if r.Intn(2) == 0 {
		q.headers["content-type"] = "application/octet-stream"
	}
	switch r.Intn(3) {
	case 0:
		q.payload = make([]byte, r.Intn(1000))
	case 1:
		q.payload = make([]byte, 1<<20+r.Intn(1000))
	}
	r.Read(q.payload)
	if r.Intn(3) == 0 {
		q.creds.SessionToken = ascii(r, alnum+"/+=", 100, 2000)
	}
	sum := sha256.Sum256(q.payload)
	q.headers["x-amz-content-sha256"] = hex.EncodeToString(sum[:])
	return q
}

// sign is the SDK's answer: encoded path, encoded query, Authorization.
func sign(t *testing.T, q request) (path, query, authorization string) {
	t.Helper()
	values := url.Values{}
	for name, value := range q.query {
		values.Set(name, value)
	}
	path = httpbinding.EscapePath(q.path, false)
	u := &url.URL{Scheme: "https", Host: q.host, Path: q.path, RawPath: path, RawQuery: values.Encode()}
	req := &http.Request{Method: q.method, URL: u, Host: q.host, Header: http.Header{}}
	for name, value := range q.headers {
		req.Header.Set(name, value)
	}
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	err := signer.SignHTTP(context.Background(), q.creds, req, q.headers["x-amz-content-sha256"], "s3", q.region, q.at)
	if err != nil {
		t.Fatal(err)
	}
	return path, req.URL.RawQuery, req.Header.Get("Authorization")
}

func pairs(m map[string]string) string {
	var all []string
	for name, value := range m {
		all = append(all, hex.EncodeToString([]byte(name))+"="+hex.EncodeToString([]byte(value)))
	}
	sort.Strings(all)
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return strings.Join(all, "&")
}

func (q request) line() string {
	headers := map[string]string{"host": q.host}
	for name, value := range q.headers {
		headers[name] = value
	}
	h := func(s string) string { return hex.EncodeToString([]byte(s)) }
	return strings.Join([]string{h(q.method), h(q.path), pairs(q.query), pairs(headers),
		h(q.headers["x-amz-content-sha256"]), h(q.creds.AccessKeyID), h(q.creds.SecretAccessKey),
		h(q.creds.SessionToken), h(q.region), h(q.at.Format("20060102T150405Z"))}, "\t")
}

func TestAgainstAWSSDK(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewSource(seed))
	all := make([]request, requests)
	var input bytes.Buffer
	for i := range all {
		all[i] = random(r)
		input.WriteString(all[i].line() + "\n")
	}
	cmd := exec.Command(bridge(t))
	cmd.Stdin = &input
	cmd.Stderr = os.Stderr
	output, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(bytes.NewReader(output))
	lines.Buffer(nil, 1<<20)
	for i, q := range all {
		if !lines.Scan() {
			t.Fatalf("the bridge answered %d of %d requests", i, len(all))
		}
		got := strings.Split(lines.Text(), "\t")
		path, query, authorization := sign(t, q)
		if len(got) != 3 || got[0] != path || got[1] != query || got[2] != authorization {
			t.Fatalf("request %d: %+v\n got %q\nwant %q", i, q, got, []string{path, query, authorization})
		}
	}
}
