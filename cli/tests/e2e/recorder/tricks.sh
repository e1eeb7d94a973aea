# Ways to reach files that have misled recorders. Runs in sh; every step must succeed.
set -e

# Links: one on the way, chains, through directories, absolute, dangling, in circles.
cat link link2 src/link3 dirlink/er/c.txt absolute/a.txt
cat dirlink/../a.txt
readlink link2 >/dev/null
if [ -e dangling ]; then exit 1; fi
if cat loop1 2>/dev/null; then exit 1; fi
test -L dangling

# Names that are missing, below what is missing, and below what is no directory.
test ! -e missing
test ! -e missing/below
test ! -e src/a.txt/below
test ! -e src/deep/missing

# Globs, here-documents, descriptors, subshells in other directories.
echo src/*.txt */nothing*
cat <<END >from-here
$(cat src/a.txt)
END
exec 3<src/b.txt
cat <&3
cat /proc/self/fd/3 >/dev/null
exec 3<&-
(cd src/deep && cat er/c.txt ../a.txt && ls ..)
(cd dirlink && pwd -P && cat er/../er/c.txt)
cat /dev/stdin <src/a.txt

# Programs: through a link, with an interpreter of their own.
bin/tool
(cd bin && ./alias -n 2>/dev/null) || true
PATH="$PWD/bin:$PATH"
tool

# Reading what was made here is no input; reading before overwriting is one.
echo new >made
cat made
cat old/out.txt
echo new >old/out.txt
cat old/out.txt
echo more >>src/deep/er/c.txt
rm old/gone.txt
test ! -e old/gone.txt

# Renames: a file, over a file, a directory with all it has, into what was made, back again.
mv moved elsewhere
cat elsewhere/x
ls elsewhere/sub
test ! -e elsewhere/missing
mv elsewhere/sub/y y
mkdir fresh && mv y fresh/
mv src/a.txt src/temporary && mv src/temporary src/a.txt
mv full/z full/zz && mv full/zz full/z

# Hard links, also of what has several names already.
ln src/a.txt hard
cat hard
stat src/b2.txt old/b3.txt >/dev/null
echo both >>src/b2.txt
cat src/b.txt

# Attributes.
chmod 600 src/deep
touch -h links/retimed
mv links/moved links/renamed
ln -P links/linked links/twice
touch -d 2001-01-01 old/b3.txt
chmod +x from-here

# Directories: full and empty, made and removed, replaced.
rmdir void
rmdir full 2>/dev/null && exit 1
mkdir void && echo x >void/inside
rm -r src/empty
mkdir a && mkdir a/b && mv a/b b && rmdir a b
mkdir -p src/deep/er/new

# What was never there at the end.
echo x >temporary && mv temporary temporary2 && rm temporary2
mktemp -d -p . >/dev/null
rmdir tmp.*

# Names of any bytes, special files, links made here.
cat name*
test -p pipe
mkfifo pipe2 && rm pipe2
ln -s src/link3 own-link && cat own-link
ln -s nowhere own-dangling && rm own-dangling
find src -newer old/out.txt >/dev/null
cp -a src copy
tar -cf - src 2>/dev/null | tar -tf - >/dev/null
