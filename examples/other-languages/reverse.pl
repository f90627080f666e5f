#!/usr/bin/perl
# Reverses text. A function on stdin: one line with the request in, exactly one line of JSON out, for as long as it lives.
# An object whose only key is "error" says that the call failed. Whatever is meant for people goes to stderr.
use strict;
use warnings;
use JSON::PP;

$| = 1;    # a line that stays in a buffer is an answer that never comes
my $json = JSON::PP->new->utf8->canonical->allow_nonref;

while ( my $line = <STDIN> ) {
    my $input = $json->decode($line)->{input};
    if ( !defined $input || ref $input ) {
        print $json->encode( { error => "input must be text" } ), "\n";
        next;
    }
    print STDERR "reversing ", length $input, " characters\n";
    print $json->encode( scalar reverse $input ), "\n";
}
