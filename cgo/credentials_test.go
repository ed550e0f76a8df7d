package multidb

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awscredentials "github.com/aws/aws-sdk-go-v2/credentials"
)

// clearAWSEnv makes the chain find nothing but what the test sets, and ask no network.
func clearAWSEnv(t *testing.T) {
	t.Helper()
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE",
		"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
		"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_ACCESS_KEY", "AWS_SECRET_KEY"} {
		t.Setenv(name, "")
	}
	dir := t.TempDir()
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", dir+"/credentials")
	t.Setenv("AWS_CONFIG_FILE", dir+"/config")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

func TestCredentials_Static(t *testing.T) {
	clearAWSEnv(t)
	f := newFakeEngine()
	s := newCredentialSource(&S3Config{AccessKeyID: "AKIA", SecretAccessKey: "secret"}, f.setCredentials, logger())
	s.refresh(t.Context())
	s.refresh(t.Context())
	if len(f.creds) != 1 || f.creds[0] != (credentials{accessKeyID: "AKIA", secretAccessKey: "secret"}) {
		t.Fatalf("set %d times", len(f.creds))
	}
}

func TestCredentials_DefaultChain(t *testing.T) {
	clearAWSEnv(t)
	logs := captureLog(t)
	f := newFakeEngine()
	s := newCredentialSource(&S3Config{Endpoint: "http://127.0.0.1:9"}, f.setCredentials, logger())
	s.refresh(t.Context())
	s.refresh(t.Context())
	if len(f.creds) != 0 {
		t.Fatalf("set without any")
	}
	if n := strings.Count(logs.String(), "cannot get credentials"); n != 1 {
		t.Fatalf("logged %d times, want 1: %s", n, logs)
	}

	// The chain is walked anew each time: what appears later is found.
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIAENV")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "envsecret")
	t.Setenv("AWS_SESSION_TOKEN", "envtoken")
	s = newCredentialSource(&S3Config{}, f.setCredentials, logger())
	s.refresh(t.Context())
	if len(f.creds) != 1 || f.creds[0] != (credentials{accessKeyID: "AKIAENV", secretAccessKey: "envsecret", sessionToken: "envtoken"}) {
		t.Fatalf("set %d times", len(f.creds))
	}
	if strings.Contains(logs.String(), "envsecret") || strings.Contains(logs.String(), "envtoken") {
		t.Fatal("a secret was logged")
	}
}

// provider returns credentials that expire an hour after they were retrieved.
type fakeProvider struct {
	retrieved int
	err       error
	hang      bool
}

func (p *fakeProvider) Retrieve(ctx context.Context) (aws.Credentials, error) {
	p.retrieved++
	if p.hang {
		time.Sleep(time.Hour) // as a metadata service that does not answer
	}
	if p.err != nil {
		return aws.Credentials{}, p.err
	}
	return aws.Credentials{
		AccessKeyID:     fmt.Sprintf("AKIA%d", p.retrieved),
		SecretAccessKey: "secret",
		CanExpire:       true,
		Expires:         time.Now().Add(time.Hour),
	}, nil
}

func newFakeSource(p *fakeProvider, f *fakeEngine) *credentialSource {
	s := newCredentialSource(&S3Config{Endpoint: "http://h"}, f.setCredentials, logger())
	s.load = func(context.Context, *S3Config) (aws.CredentialsProvider, error) { return p, nil }
	return s
}

func TestCredentials_Expiry(t *testing.T) {
	logs := captureLog(t)
	synctest.Test(t, func(t *testing.T) {
		p, f := &fakeProvider{}, newFakeEngine()
		s := newFakeSource(p, f)
		s.refresh(t.Context())
		if want := time.Now().Add(time.Hour); len(f.creds) != 1 || !f.creds[0].expires.Equal(want) {
			t.Fatalf("expires %v, want %v", f.creds[0].expires, want)
		}
		time.Sleep(54 * time.Minute)
		s.refresh(t.Context())
		s.refreshDuringCycle(t.Context())
		if p.retrieved != 1 {
			t.Fatalf("retrieved %d times, want 1", p.retrieved)
		}

		// Within five minutes they are renewed; a failure keeps those in use.
		time.Sleep(2 * time.Minute)
		p.err = errTest
		s.refresh(t.Context())
		s.refreshDuringCycle(t.Context()) // too soon to ask again
		if p.retrieved != 2 || len(f.creds) != 1 {
			t.Fatalf("retrieved %d times, set %d times", p.retrieved, len(f.creds))
		}
		time.Sleep(credentialsRetryInterval)
		p.err = nil
		s.refreshDuringCycle(t.Context())
		if len(f.creds) != 2 || f.creds[1].accessKeyID != "AKIA3" {
			t.Fatalf("set %d times, retrieved %d times", len(f.creds), p.retrieved)
		}
	})
	if got := logs.String(); strings.Count(got, "cannot get credentials") != 1 || !strings.Contains(got, "credentials found") {
		t.Fatalf("logs: %s", got)
	}
}

// Keys that the target refuses before their time are looked for where they came from.
func TestCredentials_Refused(t *testing.T) {
	f := newFakeEngine()
	p := &fakeProvider{}
	s := newFakeSource(p, f)
	loaded := 0
	s.load = func(context.Context, *S3Config) (aws.CredentialsProvider, error) { loaded++; return p, nil }
	s.refresh(t.Context())
	for _, message := range []string{
		`PUT "b/k": 503 SlowDown: no`,
		`PUT "b/k": 400 EntityTooLarge: no`,
		`PUT "b/400 ExpiredToken": 404 NoSuchBucket: no`,
		`PUT "b/k": Connection reset by peer`,
		"database is locked",
	} {
		s.heed(message)
		s.refresh(t.Context())
		if loaded != 1 || len(f.creds) != 1 {
			t.Fatalf("%s: walked the chain %d times", message, loaded)
		}
	}
	for i, message := range []string{
		`PUT "b/k": 400 ExpiredToken: The provided token has expired. (request id 1)`,
		`PUT "b/k": 400 InvalidToken`,
		`PUT "b/k": 403 InvalidAccessKeyId: no such key`,
		`GET "b/": 403 SignatureDoesNotMatch: no`,
		`PUT "b/k": 401 access denied`,
	} {
		s.heed(message)
		s.refresh(t.Context())
		s.refresh(t.Context()) // others came: that was it
		if loaded != i+2 || len(f.creds) != i+2 {
			t.Fatalf("%s: walked the chain %d times, set %d times", message, loaded, len(f.creds))
		}
	}

	// The same ones as before: again and again, until they are accepted.
	s.load = func(context.Context, *S3Config) (aws.CredentialsProvider, error) {
		loaded++
		c := s.current
		return awscredentials.NewStaticCredentialsProvider(c.accessKeyID, c.secretAccessKey, ""), nil
	}
	for range 2 { // the first time they lose their end
		s.heed(`PUT "b/k": 403 AccessDenied: no`)
		s.refresh(t.Context())
	}
	set, before := len(f.creds), loaded
	s.refresh(t.Context())
	if loaded != before+1 {
		t.Fatalf("refused still, and walked the chain %d times", loaded-before)
	}
	s.accepted()
	s.refresh(t.Context())
	if loaded != before+1 || len(f.creds) != set {
		t.Fatalf("accepted, and walked the chain %d times, set %d times", loaded-before, len(f.creds)-set)
	}
}

func TestCredentials_Hang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, f := &fakeProvider{hang: true}, newFakeEngine()
		s := newFakeSource(p, f)
		start := time.Now()
		s.refresh(t.Context())
		if elapsed := time.Since(start); elapsed != credentialsEndpointTimeout {
			t.Fatalf("took %s", elapsed)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		start = time.Now()
		s.refresh(ctx)
		if elapsed := time.Since(start); elapsed != time.Second {
			t.Fatalf("took %s", elapsed)
		}
		time.Sleep(2 * time.Hour) // let the retrievals end
	})
}

func TestCredentials_DoNotPrint(t *testing.T) {
	c := credentials{accessKeyID: "AKIA", secretAccessKey: "hush", sessionToken: "hush"}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		if got := fmt.Sprintf(format, c); strings.Contains(got, "hush") {
			t.Errorf("%s prints %s", format, got)
		}
	}
	if got := fmt.Sprint(errors.New("x"), c); strings.Contains(got, "hush") {
		t.Error(got)
	}
}
