-- ARGV: the id that reserved.
let_go(ARGV[1])
return 1
