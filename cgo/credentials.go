package multidb

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	awscredentials "github.com/aws/aws-sdk-go-v2/credentials"
)

const (
	// credentialsExpiryWindow is how long before their end credentials are renewed.
	credentialsExpiryWindow = 5 * time.Minute

	// credentialsRetryInterval spaces attempts within one long cycle.
	credentialsRetryInterval = 30 * time.Second

	// Bounds one walk along the AWS chain. It ends at the metadata service, which
	// outside AWS, where an endpoint is configured, often does not even refuse.
	credentialsTimeout         = 15 * time.Second
	credentialsEndpointTimeout = 5 * time.Second
)

// credentials are what requests are signed with. They print as nothing.
type credentials struct {
	accessKeyID, secretAccessKey, sessionToken string
	expires                                    time.Time // zero: never
}

func (credentials) String() string       { return "[credentials]" }
func (credentials) GoString() string     { return "[credentials]" }
func (credentials) LogValue() slog.Value { return slog.StringValue("[credentials]") }

func (c credentials) expireWithin(d time.Duration) bool {
	return !c.expires.IsZero() && time.Until(c.expires) < d
}

// credentialSource keeps the core supplied with credentials: the configured keys,
// else whatever the AWS default chain finds (environment, profile, web identity,
// container and instance roles).
type credentialSource struct {
	cfg *S3Config
	set func(credentials) error // hands them to the core
	log *slog.Logger

	// load finds the provider; replaced in tests.
	load func(ctx context.Context, cfg *S3Config) (aws.CredentialsProvider, error)

	// The target has said that it does not accept them, and none others came since.
	refused atomic.Bool

	mu       sync.Mutex
	provider *aws.CredentialsCache // nil: not found yet
	current  credentials           // zero: none yet
	tried    time.Time             // last attempt
	lastErr  string                // of the last attempt, so that it is logged once
}

func newCredentialSource(cfg *S3Config, set func(credentials) error, log *slog.Logger) *credentialSource {
	if err := forbidCoreFiles(); err != nil {
		log.Warn("a core file of this process would hold its keys", "error", err)
	}
	return &credentialSource{cfg: cfg, set: set, log: log, load: loadProvider}
}

// loadProvider builds the chain. Nothing is asked of the network yet.
func loadProvider(ctx context.Context, cfg *S3Config) (aws.CredentialsProvider, error) {
	if cfg.AccessKeyID != "" && cfg.SecretAccessKey != "" {
		return awscredentials.NewStaticCredentialsProvider(cfg.AccessKeyID, cfg.SecretAccessKey, ""), nil
	}
	var opts []func(*awsconfig.LoadOptions) error
	if cfg.Region != "" {
		opts = append(opts, awsconfig.WithRegion(cfg.Region))
	}
	awsCfg, err := awsconfig.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("load aws config: %w", err)
	}
	if awsCfg.Credentials == nil {
		return nil, fmt.Errorf("no aws credentials configured")
	}
	return awsCfg.Credentials, nil
}

// refusal is how the core's messages begin after the name of the object if the target
// does not accept the keys: they have ended before their time, were replaced, or are not
// known (yet).
var refusal = regexp.MustCompile(`": (40[13] |400 (ExpiredToken|InvalidToken|TokenRefreshRequired)\b)`)

// heed takes note of a failure's message. After a refusal the chain is walked anew before
// each cycle, from its files on, until it gives others or no database fails.
func (s *credentialSource) heed(message string) {
	if refusal.MatchString(message) {
		s.refused.Store(true)
	}
}

// accepted takes note of a cycle without any failure.
func (s *credentialSource) accepted() { s.refused.Store(false) }

// refresh renews credentials that are missing, refused or expire soon, and hands new ones
// to the core. A failure is logged, not returned: the credentials in use may still
// be good, and if not then the target says so for each database.
func (s *credentialSource) refresh(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refreshLocked(ctx)
}

// refreshDuringCycle is refresh for the once-a-second watch of a running cycle.
func (s *credentialSource) refreshDuringCycle(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.tried) >= credentialsRetryInterval {
		s.refreshLocked(ctx)
	}
}

func (s *credentialSource) refreshLocked(ctx context.Context) {
	refused := s.refused.Load()
	if s.current != (credentials{}) && !s.current.expireWithin(credentialsExpiryWindow) && !refused {
		return
	}
	if refused {
		s.provider = nil // it may have read a file once and for all
	}
	s.tried = time.Now()
	err := s.renew(ctx)
	if err == nil {
		if s.lastErr != "" {
			s.log.Info("credentials found")
		}
		s.lastErr = ""
		return
	}
	if ctx.Err() == nil && err.Error() != s.lastErr {
		s.lastErr = err.Error()
		s.log.Warn("cannot get credentials, will retry", "error", err)
	}
}

// cached returns the chain's own cache, or a new one: the cache lets go of a
// retrieval when the context ends, whatever it hangs on.
func cached(provider aws.CredentialsProvider) *aws.CredentialsCache {
	if cache, ok := provider.(*aws.CredentialsCache); ok {
		return cache
	}
	return aws.NewCredentialsCache(provider)
}

func (s *credentialSource) renew(ctx context.Context) error {
	timeout := credentialsTimeout
	if s.cfg.Endpoint != "" {
		timeout = credentialsEndpointTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	if s.provider == nil {
		provider, err := s.load(ctx, s.cfg)
		if err != nil {
			return err
		}
		s.provider = cached(provider)
	}
	s.provider.Invalidate() // what it holds is what we have, which expires
	got, err := s.provider.Retrieve(ctx)
	if err != nil {
		return fmt.Errorf("retrieve aws credentials: %w", err)
	}
	creds := credentials{
		accessKeyID:     got.AccessKeyID,
		secretAccessKey: got.SecretAccessKey,
		sessionToken:    got.SessionToken,
	}
	if got.CanExpire {
		creds.expires = got.Expires
	}
	if creds == s.current {
		return nil
	}
	if err := s.set(creds); err != nil {
		return fmt.Errorf("set credentials: %w", err)
	}
	s.current = creds
	s.refused.Store(false)
	return nil
}
