package main

import (
	"bufio"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// credentialVars are the variables of the model's credentials.
var credentialVars = []string{
	"ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN",
}

// cloudVars make the CLI use an API with credentials of its own (measured).
var cloudVars = []string{
	"CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY",
	"CLAUDE_CODE_USE_MANTLE", "CLAUDE_CODE_USE_ANTHROPIC_AWS",
	"CLAUDE_CODE_USE_ANTHROPIC_GOOGLE_CLOUD",
}

// credentials are those for the model's API. With VM_KEY_PROXY the agent gets none of them,
// but a placeholder for each, which the credential proxy replaces.
type credentials struct {
	api    *url.URL // it may contain a login, so print its Host only
	key    string
	bearer string      // a subscription's or a gateway's token; the CLI may send both (measured)
	custom http.Header // ANTHROPIC_CUSTOM_HEADERS

	withheld bool // the agent does not get them
	proxied  bool // the agent uses them through the proxy
}

// loadCredentials reads them, and warns where there are none.
func loadCredentials(withhold bool, agent agentUser, log *slog.Logger) (credentials, error) {
	api, err := parseBaseURL()
	if err != nil {
		return credentials{}, err
	}

	custom, err := parseCustomHeaders()
	if err != nil {
		return credentials{}, err
	}

	for _, name := range credentialVars {
		isOdd := func(char rune) bool { return char < ' ' || char > '~' }
		if strings.ContainsFunc(os.Getenv(name), isOdd) {
			return credentials{}, fmt.Errorf("cannot use %s: it contains a character that no "+
				"key has; replace a placeholder, or put it on one line", name)
		}
	}

	c := credentials{
		api: api,
		key: os.Getenv("ANTHROPIC_API_KEY"),
		// The CLI prefers a gateway's token to a subscription's (measured).
		bearer:   cmp.Or(os.Getenv("ANTHROPIC_AUTH_TOKEN"), os.Getenv("CLAUDE_CODE_OAUTH_TOKEN")),
		custom:   custom,
		withheld: withhold,
	}

	hasSecret := c.key != "" || c.bearer != "" || c.api.User != nil
	// With these the CLI uses neither a key nor ANTHROPIC_BASE_URL (measured).
	usesCloud := isTruthy("CLAUDE_CODE_USE_BEDROCK") || isTruthy("CLAUDE_CODE_USE_VERTEX")
	c.proxied = withhold && hasSecret && !usesCloud

	_, err = os.Stat(agent.configDir + "/.credentials.json")
	mayHaveLogin := !errors.Is(err, fs.ErrNotExist) // the server may not be able to look
	if !hasSecret && !slices.ContainsFunc(cloudVars, isTruthy) && !mayHaveLogin {
		log.Warn("no credentials are set: commands fail, " +
			"unless Claude Code's settings have another way to them; " +
			"set ANTHROPIC_API_KEY (or CLAUDE_CODE_OAUTH_TOKEN), or log in as the agent's user")
	}

	return c, nil
}

// parseBaseURL reads where the API is. Its error quotes nothing, because the URL may
// contain a login.
func parseBaseURL() (*url.URL, error) {
	api, err := url.Parse(cmp.Or(os.Getenv("ANTHROPIC_BASE_URL"), "https://api.anthropic.com"))
	if err == nil {
		_, err = net.LookupPort("tcp", api.Port())
	}

	if err != nil || api.Hostname() == "" || api.Scheme != "https" && api.Scheme != "http" {
		return nil, errors.New("cannot use ANTHROPIC_BASE_URL: " +
			"give a URL such as https://api.anthropic.com")
	}

	return api, nil
}

// parseCustomHeaders reads ANTHROPIC_CUSTOM_HEADERS, which has a header in each line. Its
// error quotes nothing, because they may be secrets.
func parseCustomHeaders() (http.Header, error) {
	text := strings.TrimSpace(os.Getenv("ANTHROPIC_CUSTOM_HEADERS"))
	if text == "" {
		return nil, nil
	}

	reader := textproto.NewReader(bufio.NewReader(strings.NewReader(text + "\n\n")))
	header, err := reader.ReadMIMEHeader()
	if err != nil {
		return nil, errors.New("cannot use ANTHROPIC_CUSTOM_HEADERS: " +
			"give lines such as Name: value")
	}

	return http.Header(header), nil
}

// loadTLS returns how the server connects to the model's API and to the git host: with the
// certificates that the same variables give Claude Code.
func loadTLS() (*tls.Config, error) {
	c := &tls.Config{}
	path := os.Getenv("NODE_EXTRA_CA_CERTS")
	if path != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("cannot use NODE_EXTRA_CA_CERTS: %w; name a file", err)
		}
		if !pool.AppendCertsFromPEM(data) {
			return nil, errors.New("cannot use NODE_EXTRA_CA_CERTS: " +
				"there is no certificate in it; give one or more in PEM")
		}
		c.RootCAs = pool
	}

	certificate, key := os.Getenv("CLAUDE_CODE_CLIENT_CERT"), os.Getenv("CLAUDE_CODE_CLIENT_KEY")
	if certificate != "" || key != "" {
		pair, err := tls.LoadX509KeyPair(certificate, key)
		if err != nil {
			return nil, fmt.Errorf("cannot use CLAUDE_CODE_CLIENT_CERT and _KEY: %w; "+
				"name two files in PEM, and decrypt the key (openssl pkey): the server "+
				"does not read one with a passphrase", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// secretName is what the names of variables with credentials look like.
var secretName = regexp.MustCompile(`(?i)(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|` +
	`API_?KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIALS?)(_|$)|^ANTHROPIC_CUSTOM_HEADERS$`)

// warnOfExposed logs which variables of the agent may hold a credential.
func warnOfExposed(cfg *config, log *slog.Logger) {
	const placeholder = "placeholder"
	for _, entry := range agentEnvironment(cfg, "http://127.0.0.1:0", placeholder) {
		name, value, _ := strings.Cut(entry, "=")
		address, err := url.Parse(value)
		hasLogin := err == nil && address.Host != "" && address.User != nil
		isCloud := slices.Contains(cloudVars, name) && isTruthy(name)
		isSecret := secretName.MatchString(name) && value != "" && value != placeholder
		if isSecret || hasLogin || isCloud {
			log.Warn("the agent can read these credentials: unset what it does not need "+
				"(the model's are kept from it with VM_KEY_PROXY, except a cloud's)",
				"variable", name)
		}
	}

	for name, path := range map[string]string{
		"VM_TOKEN_FILE": cfg.TokenFile, "VM_GIT_TOKEN_FILE": cfg.GitTokenFile,
	} {
		if path != "" && cfg.agent.canRead(path) {
			log.Warn("the agent can read this file: give it to root, with mode 0600, "+
				"and start the server as root, with VM_USER", "variable", name)
		}
	}
}

// isTruthy reads a switch as the CLI does (measured).
func isTruthy(name string) bool {
	switch strings.ToLower(os.Getenv(name)) {
	case "1", "true", "yes", "on":
		return true
	default:
		return false
	}
}

// remedy says what to do when the API rejects the credentials.
func (c *credentials) remedy() string {
	for _, name := range credentialVars {
		if os.Getenv(name) != "" {
			return "check " + name
		}
	}
	if c.api.User != nil {
		return "check the login in ANTHROPIC_BASE_URL"
	}
	return "log in again as the agent's user (in the image: as-agent claude)"
}

// hasLoginOnly reports whether the login of ANTHROPIC_BASE_URL is the only secret. The CLI
// sends such a login beside a key, never without one (measured), so the agent then asks
// the proxy with a token.
func (c *credentials) hasLoginOnly() bool {
	return c.api.User != nil && c.key == "" && c.bearer == ""
}

// agentEnvironment is the agent's whole environment: the server's without its own
// configuration, which contains the token, and without the credentials that are withheld.
// The placeholder stands for these. Of a variable that occurs twice the last one counts.
func agentEnvironment(cfg *config, proxyURL, placeholder string) []string {
	c := &cfg.credentials
	env := []string{} // os/exec takes nil for the server's whole environment
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		isCredential := slices.Contains(credentialVars, name)
		isLogin := name == "ANTHROPIC_BASE_URL" && c.withheld && c.api.User != nil
		isCustom := name == "ANTHROPIC_CUSTOM_HEADERS" && c.proxied
		switch {
		case strings.HasPrefix(name, "VM_"), isLogin, isCustom:
		case !isCredential || !c.withheld:
			env = append(env, entry)
		case c.proxied && value != "":
			env = append(env, name+"="+placeholder)
		}
	}

	if cfg.User != "" {
		u := cfg.agent
		env = append(env, "HOME="+u.home, "USER="+u.name, "LOGNAME="+u.name)
	}

	if c.proxied {
		env = append(env, "ANTHROPIC_BASE_URL="+proxyURL)
		if c.hasLoginOnly() {
			env = append(env, "ANTHROPIC_AUTH_TOKEN="+placeholder)
		}

		// Or an HTTPS_PROXY would get the prompts that are for the loopback.
		for _, name := range []string{"NO_PROXY", "no_proxy"} {
			env = append(env, name+"=127.0.0.1,"+os.Getenv(name))
		}
	}

	if cfg.GitToken != "" {
		env = append(env, gitEnvironment(cfg, proxyURL, placeholder)...)
	}

	return append(env, bashLimits(cfg.Timeout)...)
}

// bashLimits lets one command of the Bash tool take nearly as long as the whole command.
// By its own default the CLI moves one to the background after two minutes and ends its
// turn (measured), which loses what it would print. What the operator set stays.
func bashLimits(timeout time.Duration) (env []string) {
	limit := timeout - min(10*time.Second, timeout/10) // leaves time to report it
	milliseconds := max(1, min(limit.Milliseconds(), math.MaxInt32))
	for _, name := range []string{"BASH_DEFAULT_TIMEOUT_MS", "BASH_MAX_TIMEOUT_MS"} {
		if os.Getenv(name) == "" {
			env = append(env, fmt.Sprintf("%s=%d", name, milliseconds))
		}
	}

	return env
}
