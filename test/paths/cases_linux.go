package main

import "strings"

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

// pairs makes cases of events' names and "a b", in the order of events.
func pairs(m map[string][]string) (list []spec) {
	for _, e := range events {
		for _, ab := range m[e.name] {
			var s spec
			s.a, s.b, _ = strings.Cut(ab, " ")
			s.event = e.name
			list = append(list, s)
		}
	}
	return list
}
