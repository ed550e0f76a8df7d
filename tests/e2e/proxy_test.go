package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/md5"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"maps"
	"math/big"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// faultKind is one way in which the network, or what calls itself the server, fails a
// request. Where a fault claims success, the server has not been asked: whoever
// believes it has acknowledged what is nowhere.
type faultKind string

const (
	// connections
	faultDropUnread  faultKind = "drop-unread"  // closed when the head of the request has come
	faultDropRead    faultKind = "drop-read"    // closed when all of it has come; the server never sees it
	faultDropTaken   faultKind = "drop-taken"   // the server has done it; the answer is lost
	faultResetUpload faultKind = "reset-upload" // RST in the middle of the request's body
	faultResetAnswer faultKind = "reset-answer" // RST in the middle of the answer
	faultHandshake   faultKind = "handshake"    // closed, and so is the next connection while it is being made
	faultTLSCut      faultKind = "tls-cut"      // closed in the middle of the answer, without close_notify
	faultDelay       faultKind = "delay"        // the answer takes up to a third of a second
	faultHang        faultKind = "hang"         // no answer until calm
	faultDripAnswer  faultKind = "drip-answer"  // the answer comes at a byte a second
	faultDripUpload  faultKind = "drip-upload"  // the request is taken at a byte a second
	faultLateReset   faultKind = "late-reset"   // RST at once; the server gets the request lateAfter later
	faultLateError   faultKind = "late-error"   // 500 at once; likewise
	faultTwice       faultKind = "twice"        // the server gets the request twice
	faultCutHead     faultKind = "cut-head"     // closed in the middle of the answer's headers
	faultCutBody     faultKind = "cut-body"     // closed before the length that was told
	faultCutChunk    faultKind = "cut-chunk"    // closed in the middle of a chunked answer
	faultLengthLong  faultKind = "length-long"  // Content-Length says more than comes before the end
	faultLengthShort faultKind = "length-short" // Content-Length says less than what follows
	faultGarbage     faultKind = "garbage"      // bytes that are not HTTP
	faultHugeHead    faultKind = "huge-head"    // one header of 200 KB
	faultEndlessHead faultKind = "endless-head" // headers that do not end
	faultEndlessBody faultKind = "endless-body" // an answer that does not end
	faultFlood1xx    faultKind = "flood-1xx"    // 1xx answers that do not end
	faultGzip        faultKind = "gzip"         // the answer compressed, which nobody asked for
	faultWrongETag   faultKind = "wrong-etag"   // the server's answer with another ETag
	faultRedirect301 faultKind = "redirect-301" // to another host
	faultRedirect307 faultKind = "redirect-307" // likewise
	faultOKError     faultKind = "200-error"    // 200 with an Error document
	faultOKPage      faultKind = "200-page"     // 200 with a page of HTML: a captive portal
	faultOKEmpty     faultKind = "200-empty"    // 200 with nothing
	fault500XML      faultKind = "500-xml"      // InternalError
	fault500Empty    faultKind = "500-empty"    //
	fault500HTML     faultKind = "500-html"     //
	fault503XML      faultKind = "503-xml"      // SlowDown
	fault503Empty    faultKind = "503-empty"    //
	fault503HTML     faultKind = "503-html"     //
	fault429XML      faultKind = "429-xml"      // TooManyRequests
	fault429Empty    faultKind = "429-empty"    //
	fault429HTML     faultKind = "429-html"     //
	faultTimeout400  faultKind = "400-timeout"  // RequestTimeout
	faultSkewed      faultKind = "403-skewed"   // RequestTimeTooSkewed
	faultDenied      faultKind = "403-denied"   // AccessDenied
	faultInvalidKey  faultKind = "403-key"      // InvalidAccessKeyId
	faultExpired     faultKind = "400-expired"  // ExpiredToken

	// untruths: only where a test asks for them
	faultNoKey    faultKind = "404-nokey" // NoSuchKey
	fault404Empty faultKind = "404-empty" // with nothing
)

// lateAfter is longer than a cycle takes at an interval of 1 s: what comes late comes
// behind a newer upload.
const lateAfter = 2500 * time.Millisecond

// faults says what each kind does. Those that end the request and need no more than
// an answer are in refusals.
var faults = map[faultKind]func(x *exchange){
	faultDropUnread:  func(x *exchange) { x.hijack().Close() },
	faultDropRead:    func(x *exchange) { x.read(); x.hijack().Close() },
	faultDropTaken:   func(x *exchange) { x.ask(); x.hijack().Close() },
	faultResetUpload: (*exchange).resetUpload,
	faultResetAnswer: func(x *exchange) { x.part(x.claim(), x.reset) },
	faultHandshake:   func(x *exchange) { x.p.handshakes.Add(1); x.cut(x.hijack()) },
	faultTLSCut:      func(x *exchange) { x.part(x.claim(), x.cut) },
	faultDelay:       func(x *exchange) { x.sleep(time.Duration(x.dice.IntN(333)) * time.Millisecond); x.pass() },
	faultHang:        func(x *exchange) { x.read(); x.sleep(time.Hour); x.cut(x.hijack()) },
	faultDripAnswer:  (*exchange).dripAnswer,
	faultDripUpload:  (*exchange).dripUpload,
	faultLateReset:   func(x *exchange) { x.later(); x.reset(x.hijack()) },
	faultLateError:   func(x *exchange) { x.later(); x.refuse(500, "InternalError") },
	faultTwice:       func(x *exchange) { x.ask(); x.pass() },
	faultCutHead: func(x *exchange) {
		b := x.claim().bytes()
		x.write(b[:bytes.LastIndex(b[:bytes.Index(b, endOfHead)], []byte("\r\n"))+2], x.cut)
	},
	faultCutBody: func(x *exchange) {
		a := x.claim()
		a.header.Set("Content-Length", strconv.Itoa(len(a.body)+1))
		a.body = a.body[:len(a.body)/2]
		x.write(a.bytes(), x.cut)
	},
	faultCutChunk: func(x *exchange) {
		a := x.claim()
		a.header.Del("Content-Length")
		a.header.Set("Transfer-Encoding", "chunked")
		a.body = fmt.Appendf(nil, "%x\r\n%s", len(a.body)+1, a.body)
		x.write(a.bytes(), x.cut)
	},
	faultLengthLong: func(x *exchange) {
		a := x.claim()
		a.header.Set("Content-Length", strconv.Itoa(len(a.body)+7))
		x.write(a.bytes(), x.close)
	},
	faultLengthShort: func(x *exchange) {
		a := x.ask()
		a.header.Set("Content-Length", strconv.Itoa(max(0, len(a.body)-7)))
		a.body = append(a.body, "HTTP/1.1 200 OK\r\nETag: \"0\"\r\nContent-Length: 0\r\n\r\n"...)
		x.write(a.bytes(), x.linger)
	},
	faultGarbage: func(x *exchange) {
		x.read()
		b := make([]byte, 5000)
		for i := range b {
			b[i] = byte(x.dice.Uint32())
		}
		x.write(b, x.cut)
	},
	faultHugeHead: func(x *exchange) {
		a := x.claim()
		a.header.Set("X-Amz-Meta-Huge", strings.Repeat("huge ", 40000))
		x.write(a.bytes(), x.close)
	},
	faultEndlessHead: func(x *exchange) { x.endless("HTTP/1.1 200 OK\r\nETag: \"0\"\r\n", "X-More: and more\r\n") },
	faultEndlessBody: func(x *exchange) {
		x.endless("HTTP/1.1 200 OK\r\nETag: \"0\"\r\nConnection: close\r\n\r\n", "<!-- and more of it -->")
	},
	faultFlood1xx: func(x *exchange) { x.endless("", "HTTP/1.1 102 Processing\r\n\r\n") },
	faultGzip: func(x *exchange) {
		a := x.ask()
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, _ = z.Write(a.body)
		_ = z.Close()
		a.body = b.Bytes()
		a.header.Set("Content-Encoding", "gzip")
		x.answer(a)
	},
	faultWrongETag: func(x *exchange) {
		a := x.ask()
		a.header.Set("ETag", `"00000000000000000000000000000000"`)
		x.answer(a)
	},
	faultRedirect301: func(x *exchange) { x.redirect(301) },
	faultRedirect307: func(x *exchange) { x.redirect(307) },
	faultOKError:     func(x *exchange) { x.read(); x.answer(newAnswer(200, xmlType, errorDocument("InternalError"))) },
	faultOKPage:      func(x *exchange) { x.read(); x.answer(newAnswer(200, "text/html", page200)) },
	faultOKEmpty:     func(x *exchange) { x.read(); x.answer(newAnswer(200, "", "")) },
	fault500XML:      func(x *exchange) { x.refuse(500, "InternalError") },
	fault500Empty:    func(x *exchange) { x.read(); x.answer(newAnswer(500, "", "")) },
	fault500HTML:     func(x *exchange) { x.read(); x.answer(newAnswer(500, "text/html", page500)) },
	fault503XML:      func(x *exchange) { x.refuse(503, "SlowDown") },
	fault503Empty:    func(x *exchange) { x.read(); x.answer(newAnswer(503, "", "")) },
	fault503HTML:     func(x *exchange) { x.read(); x.answer(newAnswer(503, "text/html", page500)) },
	fault429XML:      func(x *exchange) { x.refuse(429, "TooManyRequests") },
	fault429Empty:    func(x *exchange) { x.read(); x.answer(newAnswer(429, "", "")) },
	fault429HTML:     func(x *exchange) { x.read(); x.answer(newAnswer(429, "text/html", page500)) },
	faultTimeout400:  func(x *exchange) { x.refuse(400, "RequestTimeout") },
	faultSkewed:      func(x *exchange) { x.refuse(403, "RequestTimeTooSkewed") },
	faultDenied:      func(x *exchange) { x.refuse(403, "AccessDenied") },
	faultInvalidKey:  func(x *exchange) { x.refuse(403, "InvalidAccessKeyId") },
	faultExpired:     func(x *exchange) { x.refuse(400, "ExpiredToken") },

	faultNoKey:    func(x *exchange) { x.refuse(404, "NoSuchKey") },
	fault404Empty: func(x *exchange) { x.read(); x.answer(newAnswer(404, "", "")) },
}

// allFaults are all kinds, in the order of their names.
var allFaults = slices.DeleteFunc(slices.Sorted(maps.Keys(faults)), func(k faultKind) bool {
	return k == faultNoKey || k == fault404Empty
})

// slowFaults end with a time-out of the client's, if calm does not end them.
var slowFaults = []faultKind{faultHang, faultDripAnswer, faultDripUpload}

const (
	xmlType = "application/xml"
	page200 = "<!DOCTYPE html><html><head><title>Welcome</title></head><body>Please log in.</body></html>\n"
	page500 = "<html>\r\n<head><title>Sorry</title></head>\r\n<body><center><h1>Sorry</h1></center><hr></body>\r\n</html>\r\n"
)

var endOfHead = []byte("\r\n\r\n")

// proxy stands between the client and the server, forwards bytes of whole HTTP
// requests unchanged (the Host header and with it the signature included), and
// misbehaves as told.
type proxy struct {
	t          testing.TB
	listener   net.Listener
	target     string
	scheme     string
	requests   atomic.Int64
	refused    atomic.Int64
	handshakes atomic.Int64 // connections that are to be closed while they are made
	mu         sync.Mutex
	answer     func(n int64, r *http.Request) int // HTTP status to answer with, 0: forward
	hang       chan struct{}                      // non-nil: requests wait for it to be closed
	lie        atomic.Bool                        // a PUT that the server has taken is answered with 500

	// the random mode, guarded by mu
	dice        *rand.Rand // nil: calm
	probability float64
	kinds       []faultKind
	aimed       func(r *http.Request) bool
	untilCalm   context.Context
	nowCalm     context.CancelFunc
	counts      map[faultKind]int64
	suffering   sync.WaitGroup // requests that do, or are still to be delivered
	elsewhere   string         // where redirects lead to
	strayed     atomic.Int64   // requests that came there
}

func startProxy(t testing.TB, target string, config *tls.Config) *proxy {
	t.Helper()
	p := &proxy{t: t, target: target, scheme: "http", counts: map[faultKind]int64{}}
	p.untilCalm, p.nowCalm = context.WithCancel(context.Background())
	p.listener = must1[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	var l net.Listener = breakingListener{p.listener, p}
	if config != nil {
		p.scheme = "https"
		l = tls.NewListener(l, config)
	}
	srv := &http.Server{Handler: p, ErrorLog: quietLog}
	go func() { _ = srv.Serve(l) }()
	stray := must1[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	p.elsewhere = stray.Addr().String()
	go func() {
		_ = http.Serve(stray, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { p.strayed.Add(1) }))
	}()
	t.Cleanup(func() { p.setHang(false); p.calm(); srv.Close(); stray.Close() })
	return p
}

func (p *proxy) url() string { return p.scheme + "://" + p.listener.Addr().String() }

func (p *proxy) set(answer func(n int64, r *http.Request) int) {
	p.mu.Lock()
	p.answer = answer
	p.mu.Unlock()
}

func (p *proxy) setHang(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if on && p.hang == nil {
		p.hang = make(chan struct{})
	} else if !on && p.hang != nil {
		close(p.hang)
		p.hang = nil
	}
}

// chaos has each request suffer a fault with this probability, of these kinds (none:
// all), until calm. The same seed gives the same sequence of decisions.
func (p *proxy) chaos(seed int64, probability float64, kinds ...faultKind) {
	p.chaosFor(nil, seed, probability, kinds...)
}

// chaosFor is chaos among the requests for which aimed is true.
func (p *proxy) chaosFor(aimed func(r *http.Request) bool, seed int64, probability float64, kinds ...faultKind) {
	if len(kinds) == 0 {
		kinds = allFaults
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dice, p.probability, p.kinds, p.aimed = rand.New(rand.NewPCG(uint64(seed), 0)), probability, kinds, aimed
}

// calm ends chaos, breaks off what is held up, and returns when no request suffers any
// more, and those that were to be delivered late have been.
func (p *proxy) calm() {
	p.mu.Lock()
	p.dice = nil
	p.nowCalm()
	p.untilCalm, p.nowCalm = context.WithCancel(context.Background())
	p.mu.Unlock()
	p.handshakes.Store(0)
	p.suffering.Wait()
}

// suffered returns how many requests suffered each kind so far.
func (p *proxy) suffered() map[faultKind]int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.counts)
}

// tally is suffered as one line of text.
func (p *proxy) tally() string {
	counts := p.suffered()
	var b strings.Builder
	var sum int64
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(&b, " %s %d", k, counts[k])
		sum += counts[k]
	}
	return fmt.Sprintf("%d faults in %d requests:%s", sum, p.requests.Load(), b.String())
}

// roll decides what a request suffers: nil is nothing.
func (p *proxy) roll(r *http.Request) (x *exchange, kind faultKind) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dice == nil || p.aimed != nil && !p.aimed(r) || p.dice.Float64() >= p.probability {
		return nil, ""
	}
	kind = p.kinds[p.dice.IntN(len(p.kinds))]
	p.counts[kind]++
	p.suffering.Add(1)
	return &exchange{p: p, r: r, dice: rand.New(rand.NewPCG(p.dice.Uint64(), 0)), untilCalm: p.untilCalm}, kind
}

var proxyTransport = &http.Transport{MaxIdleConnsPerHost: 200, DisableCompression: true}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := p.requests.Add(1)
	p.mu.Lock()
	answer, hang := p.answer, p.hang
	p.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-r.Context().Done():
			return
		}
	}
	if answer != nil {
		if status := answer(n, r); status != 0 {
			p.refused.Add(1)
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/xml")
			w.Header().Set("x-amz-request-id", fmt.Sprintf("PROXY%d", n))
			w.WriteHeader(status)
			fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message><RequestId>PROXY%d</RequestId></Error>`, n)
			return
		}
	}
	if x, kind := p.roll(r); x != nil {
		defer p.suffering.Done()
		x.w = w
		faults[kind](x)
		return
	}
	resp, err := proxyTransport.RoundTrip(p.outgoing(r))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer resp.Body.Close()
	if r.Method == http.MethodPut && p.lie.Load() {
		http.Error(w, "", http.StatusInternalServerError)
		return
	}
	maps.Copy(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body)
}

// outgoing is r as the server gets it.
func (p *proxy) outgoing(r *http.Request) *http.Request {
	out := r.Clone(r.Context()) // keeps r.Host, which is what was signed
	out.RequestURI = ""
	out.URL.Scheme, out.URL.Host = "http", p.target
	return out
}

// breakingListener closes connections in the middle of their TLS handshake, or with the
// first byte where there is none.
type breakingListener struct {
	net.Listener
	p *proxy
}

func (l breakingListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		left := l.p.handshakes.Load()
		for left > 0 && !l.p.handshakes.CompareAndSwap(left, left-1) {
			left = l.p.handshakes.Load()
		}
		if left <= 0 {
			return c, nil
		}
		go func() {
			_, _ = c.Read(make([]byte, 1))
			_ = c.Close()
		}()
	}
}

// said is an answer as a client gets to see it.
type said struct {
	status int
	header http.Header
	body   []byte
}

func newAnswer(status int, kind, body string) said {
	a := said{status, http.Header{}, []byte(body)}
	if kind != "" {
		a.header.Set("Content-Type", kind)
	}
	return a
}

func errorDocument(code string) string {
	return `<?xml version="1.0" encoding="UTF-8"?>` + "\n<Error><Code>" + code + "</Code><Message>As told.</Message><RequestId>PROXY</RequestId></Error>"
}

// bytes is the answer as it goes over the wire; headers that a fault has set stay.
func (a said) bytes() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", a.status, http.StatusText(a.status))
	if a.header.Get("Content-Length") == "" && a.header.Get("Transfer-Encoding") == "" {
		a.header.Set("Content-Length", strconv.Itoa(len(a.body)))
	}
	_ = a.header.Write(&b)
	b.WriteString("\r\n")
	b.Write(a.body)
	return b.Bytes()
}

// exchange is one request that suffers.
type exchange struct {
	p         *proxy
	w         http.ResponseWriter
	r         *http.Request
	dice      *rand.Rand
	untilCalm context.Context
	body      []byte
	isRead    bool
}

// read takes the whole request. Without it the connection is gone, and so is the handler.
func (x *exchange) read() {
	if !x.isRead {
		b, err := io.ReadAll(x.r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		x.body, x.isRead = b, true
	}
}

// ask has the server do it.
func (x *exchange) ask() said {
	x.read()
	out := x.p.outgoing(x.r)
	out.Body = io.NopCloser(bytes.NewReader(x.body))
	a, err := roundTrip(out)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	return a
}

func roundTrip(out *http.Request) (said, error) {
	resp, err := proxyTransport.RoundTrip(out)
	if err != nil {
		return said{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return said{resp.StatusCode, resp.Header, b}, err
}

// claim is a good answer: the server's to a question, an invented one to all that
// should change something.
func (x *exchange) claim() said {
	x.read()
	q := x.r.URL.Query()
	switch {
	case x.r.Method == http.MethodGet:
		return x.ask()
	case x.r.Method == http.MethodDelete:
		return newAnswer(204, "", "")
	case x.r.Method == http.MethodPut:
		a := newAnswer(200, "", "")
		a.header.Set("ETag", fmt.Sprintf(`"%x"`, md5.Sum(x.body)))
		return a
	case q.Has("uploads"):
		return newAnswer(200, xmlType, `<InitiateMultipartUploadResult><UploadId>invented</UploadId></InitiateMultipartUploadResult>`)
	case q.Has("uploadId"):
		return newAnswer(200, xmlType, `<CompleteMultipartUploadResult><ETag>"0-1"</ETag></CompleteMultipartUploadResult>`)
	default:
		return newAnswer(200, xmlType, `<DeleteResult></DeleteResult>`)
	}
}

// answer gives a to the client in good order.
func (x *exchange) answer(a said) {
	maps.Copy(x.w.Header(), a.header)
	x.w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	if a.status == http.StatusNoContent {
		x.w.Header().Del("Content-Length")
	}
	x.w.WriteHeader(a.status)
	_, _ = x.w.Write(a.body)
}

func (x *exchange) pass() { x.answer(x.ask()) }

func (x *exchange) refuse(status int, code string) {
	x.read()
	x.answer(newAnswer(status, xmlType, errorDocument(code)))
}

func (x *exchange) redirect(status int) {
	x.read()
	a := newAnswer(status, xmlType, errorDocument("PermanentRedirect"))
	a.header.Set("Location", "http://"+x.p.elsewhere+x.r.URL.RequestURI())
	x.answer(a)
}

// later has the server do it lateAfter from now, whatever happens.
func (x *exchange) later() {
	x.read()
	out := x.p.outgoing(x.r).WithContext(context.WithoutCancel(x.r.Context()))
	body := x.body
	x.p.suffering.Go(func() {
		time.Sleep(lateAfter)
		out.Body = io.NopCloser(bytes.NewReader(body))
		_, _ = roundTrip(out) // a server that is away does not get it
	})
}

// sleep waits until calm, until the client is gone, or for d.
func (x *exchange) sleep(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-x.untilCalm.Done():
	case <-x.r.Context().Done():
	case <-timer.C:
	}
}

func (x *exchange) hijack() net.Conn {
	c, _, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	return c
}

func rawConn(c net.Conn) net.Conn {
	if t, ok := c.(*tls.Conn); ok {
		return t.NetConn()
	}
	return c
}

// The ends that a connection can come to: in good order (for TLS with close_notify),
// without, with RST, and when the client closes it.
func (x *exchange) close(c net.Conn) { _ = c.Close() }
func (x *exchange) cut(c net.Conn)   { _ = rawConn(c).Close() }
func (x *exchange) reset(c net.Conn) {
	_ = rawConn(c).(*net.TCPConn).SetLinger(0)
	_ = rawConn(c).Close()
}
func (x *exchange) linger(c net.Conn) {
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = io.Copy(io.Discard, c)
	_ = c.Close()
}

// write sends b as it is, then ends the connection.
func (x *exchange) write(b []byte, end func(net.Conn)) {
	c := x.hijack()
	_, _ = c.Write(b)
	end(c)
}

// part sends half of a: its headers, and half of the body if it has one.
func (x *exchange) part(a said, end func(net.Conn)) {
	b := a.bytes()
	head := bytes.Index(b, endOfHead)
	if len(a.body) > 0 {
		b = b[:head+len(endOfHead)+len(a.body)/2]
	} else {
		b = b[:head/2]
	}
	c := x.hijack()
	_, _ = c.Write(b)
	time.Sleep(20 * time.Millisecond) // RST overtakes what is still under way
	end(c)
}

func (x *exchange) resetUpload() {
	_, _ = io.CopyN(io.Discard, x.r.Body, x.r.ContentLength/2)
	x.reset(x.hijack())
}

// drip repeats one step a second until it fails, or calm.
func (x *exchange) drip(c net.Conn, step func() error) {
	defer context.AfterFunc(x.untilCalm, func() { x.cut(c) })()
	defer x.cut(c)
	for step() == nil {
		time.Sleep(time.Second)
	}
}

func (x *exchange) dripAnswer() {
	b := x.claim().bytes()
	c := x.hijack()
	x.drip(c, func() error {
		if len(b) == 0 {
			return io.EOF
		}
		_, err := c.Write(b[:1])
		b = b[1:]
		return err
	})
}

func (x *exchange) dripUpload() {
	c := x.hijack()
	one := make([]byte, 1)
	x.drip(c, func() error {
		_, err := c.Read(one)
		return err
	})
}

// endless sends start, and then more as fast as the client takes it.
func (x *exchange) endless(start, more string) {
	x.read()
	c := x.hijack()
	defer x.cut(c)
	block := []byte(strings.Repeat(more, 16<<10/len(more)))
	defer context.AfterFunc(x.untilCalm, func() { x.cut(c) })()
	_, err := io.WriteString(c, start)
	for err == nil {
		_, err = c.Write(block)
	}
}

// selfSigned returns a server configuration with a certificate nobody trusts.
func selfSigned(t testing.TB) *tls.Config {
	t.Helper()
	key := must1[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), crand.Reader))
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "nobody"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der := must1[[]byte](t)(x509.CreateCertificate(crand.Reader, tmpl, tmpl, &key.PublicKey, key))
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}
