package filter

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// regressions are the attacks and the failures elsewhere that concern packets or policy, by the names that they are
// known by, and the tests that hold them off: "file: Test" or "file: Test/subtest", from the root of the repository.
//
//	T2.n   what a member that has turned hostile may try
//	R-...  what has gone wrong in systems like this one
var regressions = map[string][]string{
	"T2.1 inner source spoof":           {"acl/filter/attack_test.go: TestSourceNotOwned", "acl/filter/attack_test.go: TestSourceBehindPeer", "acl/filter/attack_test.go: TestMeshAddressesNeverMatchThroughRoutes"},
	"T2.2 fragments":                    {"acl/filter/fragment_test.go: TestFragmentAttacks", "acl/filter/fragment_test.go: TestFragmentTableIsBounded", "acl/filter/fragment_test.go: TestFragmentsOfLegitimateDatagramPass", "acl/filter/fuzz_test.go: FuzzFragments"},
	"T2.3 TCP without state":            {"acl/filter/attack_test.go: TestTCPFlagsFromUnauthorisedPeer"},
	"T2.4 IPv6 extension headers":       {"acl/filter/attack_test.go: TestExtensionChains", "acl/filter/bench_test.go: BenchmarkExtensionChain", "acl/filter/fuzz_test.go: FuzzExtensions"},
	"T2.5 ICMP":                         {"acl/filter/attack_test.go: TestICMPErrors"},
	"T2.6 UDP reflection":               {"acl/filter/attack_test.go: TestFlowOfOnePeerNeverAdmitsAnother"},
	"T2.7 table exhaustion":             {"acl/filter/attack_test.go: TestTableExhaustion", "acl/filter/attack_test.go: TestTableFullLeavesRoomForOthers"},
	"T2.8 malformed headers":            {"acl/filter/attack_test.go: TestMalformedHeaders", "acl/filter/attack_test.go: TestIHLBelowFive", "acl/filter/fuzz_test.go: FuzzParse4", "acl/filter/fuzz_test.go: FuzzParse6"},
	"T2.9 unlisted protocols":           {"acl/filter/attack_test.go: TestUnlistedProtocols"},
	"T2.10 reach through a router":      {"acl/filter/attack_test.go: TestRouterReachesOnlyWhatPolicyNames", "acl/filter/attack_test.go: TestExitIsNoRouterOfPrivateNetworks"},
	"T2.11 endpoint poisoning":          {"node/path/poison_test.go: TestPoisonedEndpoints", "coordinator/security_test.go: TestREndpoints", "node/bind/parts_test.go: TestEndpoints"},
	"revocation of live flows":          {"acl/filter/cut_test.go: TestRevocationCutsFlows", "acl/filter/cut_test.go: TestRevocationTellsByICMP", "node/mesh_test.go: TestMeshPolicyEditCutsFlows"},
	"packets that other filters let in": {"acl/filter/battery_test.go: TestBattery", "acl/filter/attack_test.go: TestPacketsFromPeerWithoutRule"},

	"R-forward-inbound":    {"acl/filter/battery_test.go: TestRegressions/R-forward-inbound"},
	"R-spoof-matrix":       {"acl/filter/battery_test.go: TestRegressions/R-spoof-matrix"},
	"R-v6-ext":             {"acl/filter/battery_test.go: TestRegressions/R-v6-ext"},
	"R-v6-unknown-proto":   {"acl/filter/battery_test.go: TestRegressions/R-v6-unknown-proto"},
	"R-unauth-teardown":    {"acl/filter/battery_test.go: TestRegressions/R-unauth-teardown", "node/bind/parts_test.go: TestStranger"},
	"R-relay-replay":       {"node/bind/replay_test.go: TestRelayReplay", "node/bind/once_test.go: TestOnce", "derp/server_test.go: TestReplaysAreBounded", "derp/twin_test.go: TestUDPStrangers"},
	"R-allowedips-owner":   {"acl/filter/battery_test.go: TestRegressions/R-allowedips-owner", "coordinator/routes_test.go: TestAdvertiseTakesOnlyRoutes", "coordinator/routes_test.go: TestOrder"},
	"R-prealloc":           {"acl/filter/battery_test.go: TestRegressions/R-prealloc"},
	"R-clock":              {"acl/filter/battery_test.go: TestRegressions/R-clock", "acl/filter/clock_test.go: TestClockInDoubt", "acl/filter/clock_test.go: TestClockJumpsUnderFlows", "node/clock_test.go: TestClockOfTheCoordinator"},
	"R-leak-netmap-10k":    {"acl/filter/battery_test.go: TestRegressions/R-leak-netmap-10k"},
	"R-token-race-64":      {"coordinator/security_test.go: TestRTokenRace64"},
	"R-token-after-delete": {"coordinator/security_test.go: TestRTokenAfterDelete"},
	"R-token-owner":        {"coordinator/security_test.go: TestRTokenOwner"},
	"R-token-forge":        {"coordinator/security_test.go: TestRTokenForge"},
	"R-no-secret-in-log":   {"coordinator/security_test.go: TestRNoSecretInLog"},
	"R-map-binding":        {"coordinator/security_test.go: TestRMapBinding"},
	"R-nodekey-claim":      {"coordinator/security_test.go: TestRNodekeyClaim"},
	"R-body-bomb":          {"coordinator/security_test.go: TestRBodyBomb", "coordinator/wire/conn_test.go: TestRBodyBomb"},
	"R-route-matrix":       {"coordinator/security_test.go: TestRRouteMatrix"},
	"R-listen-loopback":    {"node/proxy/proxy_test.go: TestLoopbackOnly"},
	"R-localapi-rebind":    {"node/local_test.go: TestLocalRefusesBrowsers", "node/proxy/http_test.go: TestRebinding"},
}

// Each of them is there, by its name.
func TestRegressionTestsExist(t *testing.T) {
	sources := map[string]string{}
	for name, tests := range regressions {
		if strings.HasPrefix(name, "R-") && len(tests) == 0 {
			t.Errorf("%s has no test", name)
		}
		for _, test := range tests {
			file, fn, _ := strings.Cut(test, ": ")
			fn, sub, _ := strings.Cut(fn, "/")
			if sources[file] == "" {
				b, err := os.ReadFile("../../" + file)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				sources[file] = string(b)
			}
			src := sources[file]
			body := regexp.MustCompile(`(?s)\nfunc ` + fn + `\(\w+ \*testing\.\w+\) \{.*?\n\}\n`).FindString(src)
			if body == "" || sub != "" && !strings.Contains(body, `t.Run("`+sub+`"`) {
				t.Errorf("%s: there is no %s", name, test)
			}
		}
	}
}
