package main

import (
	"strings"
)

// eventCases are the pairs that each event is tried on.
var eventCases = pairs(map[string][]string{
	"lan":         {"easy easy", "easyopen easy", "hard fullcone", "hard easy", "blocked easy", "dual dual", "cgn easy"},
	"lan-b":       {"easy easy", "easy hard", "fullcone addrrestr"},
	"lan-both":    {"easy easy", "easyopen easyopen"},
	"lan-3":       {"easy easy"},
	"uplink":      {"easy easy", "hard addrrestr", "easy easyopen"},
	"uplink-free": {"blocked easy"},
	"uplink-hard": {"easy easy", "easy none"},
	"uplink-over": {"easy dual"},
	"standby":     {"easy easy", "addrrestr fullcone"},
	"bounce":      {"easy easy", "blocked easy", "easy cgn"},
	"wan":         {"easy easy", "fullcone hard", "blocked easy", "easyopen easy"},
	"wan-b":       {"easy easy", "none easy", "addrrestr hard"},
	"forget":      {"easy easy", "easy easyopen", "hard fullcone", "hard easy", "cgn+hp cgn+hp"},
	"forget-both": {"easy easy", "easyopen easyopen", "addrrestr addrrestr"},
	"udp-off":     {"easy easy", "none easy", "dual dual"},
	"udp-on":      {"easy easy"},
	"tcp-dead":    {"blocked easy", "easy easy"},
	"loss":        {"none fullcone"},
	"loss-over":   {"easy easy"},
	"mtu":         {"easy easy", "dual dual", "none easy"},
	"mtu-all":     {"easy easy", "blocked easy"},
	"direct-off":  {"easy easy", "easy hard"},
	"hub-dead":    {"easy easy"},
	"hub-restart": {"easy easy", "blocked easy"},
	"relay-dead":  {"easy easy", "blocked easy"},
	"sleep":       {"easy easy"},
	"sleep-move":  {"easy easy", "blocked easy"},
	"restart-b":   {"easy easy", "easy hard"},
	"rest":        {"easy easy", "hard fullcone"},
	"jitter":      {"easy easy", "blocked easy"},
})

// moreCases are the pairs that more is tried on.
var moreCases = pairs(map[string][]string{
	"v6-prefix":   {"dual dual", "v6 v6", "dual v6"},
	"v6-gone":     {"dual dual"},
	"v6-dead":     {"dual dual"},
	"route":       {"easy easy", "easy easyopen"},
	"vpn":         {"easy easy", "hard addrrestr", "none easy"},
	"vpn-over":    {"easy easy", "easy fullcone"},
	"lan-late":    {"easy easy", "easy fullcone"},
	"forget-5":    {"easy easy", "easyopen easyopen", "hard fullcone"},
	"wan-3":       {"easy easy", "easy easyopen"},
	"wan-both":    {"easy easy", "easyopen easyopen", "fullcone addrrestr", "blocked blocked"},
	"wan-hard":    {"easy easy", "easy fullcone"},
	"wan-easy":    {"hard easy", "hard hard", "blocked easy"},
	"wan":         {"cgn easy", "opencgn easy", "hardcgn none", "easyrand easy", "pool easy", "nat66 dual"},
	"lan":         {"opencgn easy", "easyrand easy", "hardaddr none", "firewall easy", "short short"},
	"forget":      {"opencgn easy", "easyrand easyrand", "wary easy", "firewall firewall", "hardfree easy"},
	"rest":        {"firewall easy", "easyrand easyopen", "hardaddr none"},
	"swap":        {"easy easy", "easyopen easy", "easy hard"},
	"flap":        {"easy easy", "blocked easy"},
	"dark":        {"easy easy", "easyopen easy", "hard fullcone", "blocked easy", "dual dual"},
	"captive":     {"easy easy", "blocked easy"},
	"police":      {"easy easy", "none easy", "hard hard"},
	"loss-up":     {"none fullcone", "easy easy"},
	"loss-down":   {"easy easy"},
	"up-off":      {"easy easy"},
	"down-off":    {"easy easy"},
	"late":        {"easy easy", "hard hard", "blocked easy"},
	"copies":      {"easy easy", "hard hard"},
	"slow":        {"easy easy", "hard hard", "blocked easy"},
	"slow-over":   {"easy easy", "hard hard"},
	"narrow":      {"easy easy", "hard hard", "blocked easy"},
	"mtu-told":    {"easy easy", "blocked easy"},
	"hub-roam":    {"easy easy", "hard addrrestr", "blocked easy"},
	"hub-wan":     {"easy easy", "easy easyopen"},
	"relay-moves": {"easy easy", "hard hard", "blocked easy"},
	"relays-dead": {"easy easy", "none easy"},
	"anew":        {"easy easy", "easy hard", "hard easy", "hardblk hardblk"},
	"lease":       {"easy easy", "easyopen easy", "blocked easy"},
	"refused":     {"easy easy", "hard fullcone"},
	"lan-20":      {"easy easy"},
	"rough":       {"easy easy"},
})

// sharpest are those of moreCases that every change must pass.
var sharpest = pairs(map[string][]string{"hub-roam": {"easy easy"}, "vpn": {"easy easy"}, "v6-dead": {"dual dual"}, "late": {"easy easy"}})

// pairs makes cases of events' names and "a b", in the order of events.
func pairs(m map[string][]string) (list []spec) {
	for _, e := range allEvents() {
		for _, ab := range m[e.name] {
			var s spec
			s.a, s.b, _ = strings.Cut(ab, " ")
			s.event = e.name
			list = append(list, s)
		}
	}
	return list
}
